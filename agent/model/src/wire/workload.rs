//! Converts `istio.workload.Workload`.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use isthmus_proto::workload as proto;

use super::{WireError, addr};
use crate::admit;
use crate::identity::TrustDomain;
use crate::intern::Interner;
use crate::name::NamespacedHostname;
use crate::workload::{
    ApplicationTunnel, Health, Locality, Memberships, NetworkMode, Protocol, TunnelKind, Workload,
    WorkloadType,
};

/// Defaults of absent fields.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";
const DEFAULT_CAPACITY: u32 = 1;

pub(super) fn read(wire: proto::Workload, texts: &mut Interner) -> Result<Workload, WireError> {
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
    admit::workload(Workload {
        // Only these two texts are unique to the workload; the others are interned.
        uid: uid.into(),
        name: name.into(),
        namespace: texts.name(&namespace),
        addresses: ips(&addresses)?,
        hostname: texts.name(&hostname),
        network: texts.name(&network),
        protocol: protocol(tunnel_protocol)?,
        trust_domain: TrustDomain::interned(&trust_domain, texts),
        service_account: texts.name(or_default(&service_account, DEFAULT_SERVICE_ACCOUNT)),
        waypoint: waypoint.map(|wire| addr::gateway("waypoint", wire, texts)).transpose()?,
        network_gateway: network_gateway
            .map(|wire| addr::gateway("network_gateway", wire, texts))
            .transpose()?,
        node: texts.name(&node),
        canonical_name: texts.name(&canonical_name),
        canonical_revision: texts.name(&canonical_revision),
        workload_type: kind(workload_type),
        workload_name: texts.name(&workload_name),
        native_tunnel,
        application_tunnel: application_tunnel.map(tunnel).transpose()?,
        services: memberships(services, texts)?,
        authorization_policies: authorization_policies.iter().map(|key| texts.name(key)).collect(),
        status: health(status),
        cluster_id: texts.name(or_default(&cluster_id, DEFAULT_CLUSTER)),
        locality: locality.map(|wire| place(&wire, texts)).unwrap_or_default(),
        network_mode: mode(network_mode),
        capacity: capacity.unwrap_or(DEFAULT_CAPACITY),
    })
}

/// With the exact capacity, nearly always one: `collect` would allocate four.
fn ips(wire: &[Vec<u8>]) -> Result<Vec<IpAddr>, WireError> {
    let mut addresses = Vec::with_capacity(wire.len());
    for bytes in wire {
        addresses.push(addr::ip("addresses", bytes)?);
    }
    Ok(addresses)
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

/// An unknown tunnel protocol must not be taken for plaintext.
fn protocol(value: i32) -> Result<Protocol, WireError> {
    match proto::TunnelProtocol::try_from(value) {
        Ok(proto::TunnelProtocol::None) => Ok(Protocol::Tcp),
        Ok(proto::TunnelProtocol::Hbone) => Ok(Protocol::Hbone),
        Ok(proto::TunnelProtocol::LegacyIstioMtls) | Err(_) => {
            Err(WireError::Unsupported { field: "tunnel_protocol", value })
        }
    }
}

/// Telemetry only, so an unknown kind becomes the default.
fn kind(value: i32) -> WorkloadType {
    match proto::WorkloadType::try_from(value) {
        Ok(proto::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(proto::WorkloadType::Pod) => WorkloadType::Pod,
        Ok(proto::WorkloadType::Job) => WorkloadType::Job,
        Ok(proto::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
    }
}

/// An unknown status is treated as unhealthy.
fn health(value: i32) -> Health {
    match proto::WorkloadStatus::try_from(value) {
        Ok(proto::WorkloadStatus::Healthy) => Health::Healthy,
        Ok(proto::WorkloadStatus::Unhealthy) | Err(_) => Health::Unhealthy,
    }
}

/// An unknown mode is ignored: addresses are the workload's own unless the mode is host network.
fn mode(value: i32) -> NetworkMode {
    match proto::NetworkMode::try_from(value) {
        Ok(proto::NetworkMode::HostNetwork) => NetworkMode::HostNetwork,
        Ok(proto::NetworkMode::Standard) | Err(_) => NetworkMode::Standard,
    }
}

fn place(wire: &proto::Locality, texts: &mut Interner) -> Locality {
    let proto::Locality { region, zone, subzone } = wire;
    Locality { region: texts.name(region), zone: texts.name(zone), subzone: texts.name(subzone) }
}

/// An unknown kind is rejected: the application must not receive bytes that it does not expect.
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
    Ok(ApplicationTunnel { protocol: kind, port: Some(port) })
}

fn memberships(
    wire: HashMap<String, proto::PortList>,
    texts: &mut Interner,
) -> Result<Memberships, WireError> {
    let mut services = BTreeMap::new();
    for (key, proto::PortList { ports }) in wire {
        let Some((namespace, hostname)) = NamespacedHostname::split(&key) else {
            return Err(WireError::ServiceName { field: "services", value: key });
        };
        let service = NamespacedHostname { namespace: texts.name(namespace), hostname: texts.name(hostname) };
        services.insert(service, addr::ports("services.ports", ports)?);
    }
    Ok(texts.memberships(services))
}
