//! `workloads` of the dump. Empty strings are left out, as istioctl's structs expect.

use isthmus_model::workload::TunnelKind;
use isthmus_model::{Health, NetworkMode, Protocol, Workload};
use serde::Serialize;

use super::GatewayDto;

/// `workloads[]`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WorkloadDto<'a> {
    workload_ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDto>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<GatewayDto>,
    protocol: &'static str,
    network_mode: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    name: &'a str,
    namespace: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    trust_domain: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    workload_name: &'a str,
    workload_type: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<TunnelDto>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    authorization_policies: Vec<&'a str>,
    status: &'static str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    locality: Option<LocalityDto<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<String>,
    capacity: u32,
}

#[derive(Debug, Serialize)]
struct TunnelDto {
    protocol: &'static str,
    port: Option<u16>,
}

#[derive(Debug, Serialize)]
struct LocalityDto<'a> {
    region: &'a str,
    zone: &'a str,
    subzone: &'a str,
}

/// One workload.
pub(super) fn dto(workload: &Workload) -> impl Serialize {
    WorkloadDto::from(workload)
}

/// `Healthy` or `Unhealthy`.
pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}

impl<'a> From<&'a Workload> for WorkloadDto<'a> {
    fn from(w: &'a Workload) -> Self {
        let place = &w.locality;
        let placed = !(place.region.is_empty() && place.zone.is_empty() && place.subzone.is_empty());
        Self {
            workload_ips: w.addresses.iter().map(ToString::to_string).collect(),
            waypoint: w.waypoint.as_ref().map(Into::into),
            network_gateway: w.network_gateway.as_ref().map(Into::into),
            protocol: match w.protocol {
                Protocol::Hbone => "HBONE",
                Protocol::Tcp => "TCP",
            },
            network_mode: match w.network_mode {
                NetworkMode::Standard => "Standard",
                NetworkMode::HostNetwork => "HostNetwork",
            },
            uid: w.uid.as_str(),
            name: w.name.as_str(),
            namespace: w.namespace.as_str(),
            trust_domain: w.trust_domain.as_str(),
            service_account: w.service_account.as_str(),
            network: w.network.as_str(),
            workload_name: w.workload_name.as_str(),
            workload_type: w.workload_type.as_str(),
            canonical_name: w.canonical_name.as_str(),
            canonical_revision: w.canonical_revision.as_str(),
            hostname: w.hostname.as_str(),
            node: w.node.as_str(),
            native_tunnel: w.native_tunnel,
            application_tunnel: w.application_tunnel.map(|tunnel| TunnelDto {
                protocol: match tunnel.protocol {
                    TunnelKind::None => "NONE",
                    TunnelKind::Proxy => "PROXY",
                },
                port: tunnel.port,
            }),
            authorization_policies: w.authorization_policies.iter().map(|key| key.as_str()).collect(),
            status: health(w.status),
            cluster_id: w.cluster_id.as_str(),
            locality: placed.then(|| LocalityDto {
                region: place.region.as_str(),
                zone: place.zone.as_str(),
                subzone: place.subzone.as_str(),
            }),
            services: w.services.keys().map(ToString::to_string).collect(),
            capacity: w.capacity,
        }
    }
}
