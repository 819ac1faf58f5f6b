//! `istio.workload.Workload`.

use isthmus_proto::workload as proto;

use super::{WireError, addr};
use crate::name::NamespacedHostname;
use crate::workload::{
    ApplicationTunnel, Health, Locality, NetworkMode, PortMap, Protocol, TunnelKind, Workload, WorkloadType,
};

/// Defaults of absent fields.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";
const DEFAULT_CAPACITY: u32 = 1;

impl TryFrom<proto::Workload> for Workload {
    type Error = WireError;

    #[expect(clippy::too_many_lines, reason = "one line per field, taken apart and put together")]
    fn try_from(wire: proto::Workload) -> Result<Self, Self::Error> {
        let proto::Workload {
            uid,
            name,
            namespace,
            addresses,
            hostname,
            network,
            tunnel_protocol,
            trust_domain,
            service_account,
            waypoint,
            network_gateway,
            node,
            canonical_name,
            canonical_revision,
            workload_type,
            workload_name,
            native_tunnel,
            application_tunnel,
            services,
            authorization_policies,
            status,
            cluster_id,
            locality,
            network_mode,
            extensions: _,
            capacity,
        } = wire;
        if uid.is_empty() {
            return Err(WireError::Missing { field: "uid" });
        }
        Ok(Self {
            uid: uid.into(),
            name: name.into(),
            namespace: namespace.into(),
            addresses: addresses
                .iter()
                .map(|bytes| addr::ip("addresses", bytes))
                .collect::<Result<_, _>>()?,
            hostname: hostname.into(),
            network: network.into(),
            protocol: protocol(tunnel_protocol)?,
            trust_domain: trust_domain.as_str().into(),
            service_account: or_default(service_account, DEFAULT_SERVICE_ACCOUNT).into(),
            waypoint: waypoint.map(|wire| addr::gateway("waypoint", wire)).transpose()?,
            network_gateway: network_gateway
                .map(|wire| addr::gateway("network_gateway", wire))
                .transpose()?,
            node: node.into(),
            canonical_name: canonical_name.into(),
            canonical_revision: canonical_revision.into(),
            workload_type: kind(workload_type),
            workload_name: workload_name.into(),
            native_tunnel,
            application_tunnel: application_tunnel.map(tunnel).transpose()?,
            services: services.into_iter().map(membership).collect::<Result<_, _>>()?,
            authorization_policies: authorization_policies.into_iter().map(Into::into).collect(),
            status: health(status),
            cluster_id: or_default(cluster_id, DEFAULT_CLUSTER).into(),
            locality: locality.map(place).unwrap_or_default(),
            network_mode: mode(network_mode),
            capacity: capacity.unwrap_or(DEFAULT_CAPACITY),
        })
    }
}

fn or_default(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

/// A tunnel that is not spoken here must not be mistaken for plain text.
fn protocol(value: i32) -> Result<Protocol, WireError> {
    match proto::TunnelProtocol::try_from(value) {
        Ok(proto::TunnelProtocol::None) => Ok(Protocol::Tcp),
        Ok(proto::TunnelProtocol::Hbone) => Ok(Protocol::Hbone),
        Ok(proto::TunnelProtocol::LegacyIstioMtls) | Err(_) => {
            Err(WireError::Unsupported { field: "tunnel_protocol", value })
        }
    }
}

/// Telemetry only, so a new kind is the default one.
fn kind(value: i32) -> WorkloadType {
    match proto::WorkloadType::try_from(value) {
        Ok(proto::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(proto::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(proto::WorkloadType::Job) => WorkloadType::Job,
        Ok(proto::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
    }
}

/// Whatever a new status means, it is not "healthy".
fn health(value: i32) -> Health {
    match proto::WorkloadStatus::try_from(value) {
        Ok(proto::WorkloadStatus::Healthy) => Health::Healthy,
        Ok(proto::WorkloadStatus::Unhealthy) | Err(_) => Health::Unhealthy,
    }
}

/// A new mode is ignored: addresses are a workload's own unless it is said that they are the node's.
fn mode(value: i32) -> NetworkMode {
    match proto::NetworkMode::try_from(value) {
        Ok(proto::NetworkMode::HostNetwork) => NetworkMode::HostNetwork,
        Ok(proto::NetworkMode::Standard) | Err(_) => NetworkMode::Standard,
    }
}

fn place(wire: proto::Locality) -> Locality {
    let proto::Locality { region, zone, subzone } = wire;
    Locality { region: region.into(), zone: zone.into(), subzone: subzone.into() }
}

/// Bytes that the application would not expect must not be written to it, so a new kind is refused.
fn tunnel(wire: proto::ApplicationTunnel) -> Result<ApplicationTunnel, WireError> {
    let proto::ApplicationTunnel { protocol, port } = wire;
    let kind = match proto::application_tunnel::Protocol::try_from(protocol) {
        Ok(proto::application_tunnel::Protocol::None) => TunnelKind::None,
        Ok(proto::application_tunnel::Protocol::Proxy) => TunnelKind::Proxy,
        Err(_) => {
            return Err(WireError::Unsupported { field: "application_tunnel.protocol", value: protocol });
        }
    };
    let port = addr::port("application_tunnel.port", port)?;
    Ok(ApplicationTunnel { protocol: kind, port: (port != 0).then_some(port) })
}

fn membership(entry: (String, proto::PortList)) -> Result<(NamespacedHostname, PortMap), WireError> {
    let (key, proto::PortList { ports }) = entry;
    let service =
        NamespacedHostname::parse(&key).ok_or(WireError::ServiceName { field: "services", value: key })?;
    Ok((service, addr::ports("services.ports", ports)?))
}
