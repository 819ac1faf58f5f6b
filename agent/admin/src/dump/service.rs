//! Services of the dump, with their endpoints by workload uid.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_model::service::{HealthPolicy, LbMode, LbScope, LoadBalancer};
use isthmus_model::{IpFamilies, Service, Visibility};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{EndpointView, Filter, GatewayDto};

/// `services[]`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceDto<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<Value>,
    ports: BTreeMap<String, u16>,
    endpoints: Value,
    subject_alt_names: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<GatewayDto>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<BalancerDto>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    canonical: bool,
    visibility: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BalancerDto {
    routing_preferences: Vec<&'static str>,
    mode: &'static str,
    health_policy: &'static str,
}

/// The list, sorted by hostname.
pub(super) fn list(services: &[(Arc<Service>, Vec<EndpointView>)], filter: &Filter) -> Value {
    let mut wanted: Vec<_> =
        services.iter().filter(|(s, _)| filter.fits(s.namespace.as_str(), s.name.as_str())).collect();
    wanted.sort_by(|(a, _), (b, _)| (&a.hostname, &a.namespace).cmp(&(&b.hostname, &b.namespace)));
    wanted.into_iter().map(|(service, endpoints)| super::value(&dto(service, endpoints))).collect()
}

/// Endpoints by workload uid.
pub(super) fn endpoints(endpoints: &[EndpointView]) -> Value {
    let mut sorted: Vec<_> = endpoints.iter().collect();
    sorted.sort_by(|a, b| a.uid.cmp(&b.uid));
    let entry = |endpoint: &EndpointView| {
        let body = json!({
            "workloadUid": endpoint.uid.as_str(),
            "port": super::ports(&endpoint.ports),
            "status": super::workload::health(endpoint.status),
        });
        (endpoint.uid.to_string(), body)
    };
    Value::Object(sorted.into_iter().map(entry).collect::<Map<_, _>>())
}

fn dto<'a>(s: &'a Service, held: &[EndpointView]) -> ServiceDto<'a> {
    ServiceDto {
        name: s.name.as_str(),
        namespace: s.namespace.as_str(),
        hostname: s.hostname.as_str(),
        vips: s.vips.iter().map(ToString::to_string).collect(),
        cidr_vips: s
            .cidr_vips
            .iter()
            .map(|v| json!({"network": v.network.as_str(), "cidr": v.cidr.to_string()}))
            .collect(),
        ports: super::ports(&s.ports),
        endpoints: endpoints(held),
        subject_alt_names: s.subject_alt_names.iter().map(ToString::to_string).collect(),
        waypoint: s.waypoint.as_ref().map(Into::into),
        weighted_waypoints: s
            .weighted_waypoints
            .iter()
            .map(|(to, weight)| json!({"destination": GatewayDto::from(to), "weight": weight}))
            .collect(),
        load_balancer: s.load_balancer.as_ref().map(balancer),
        ip_families: s.ip_families.map(|families| match families {
            IpFamilies::Dual => "Dual",
            IpFamilies::Ipv4 => "IPv4",
            IpFamilies::Ipv6 => "IPv6",
        }),
        canonical: s.canonical,
        visibility: match s.visibility {
            Visibility::Public => "Public",
            Visibility::Namespace => "Namespace",
        },
    }
}

fn balancer(balancer: &LoadBalancer) -> BalancerDto {
    let scope = |scope: &LbScope| match scope {
        LbScope::Region => "Region",
        LbScope::Zone => "Zone",
        LbScope::Subzone => "Subzone",
        LbScope::Node => "Node",
        LbScope::Cluster => "Cluster",
        LbScope::Network => "Network",
    };
    BalancerDto {
        routing_preferences: balancer.routing_preferences.iter().map(scope).collect(),
        mode: match balancer.mode {
            LbMode::Standard => "Standard",
            LbMode::Strict => "Strict",
            LbMode::Failover => "Failover",
            LbMode::Passthrough => "Passthrough",
        },
        health_policy: match balancer.health_policy {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        },
    }
}
