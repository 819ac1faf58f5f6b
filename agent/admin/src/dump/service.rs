//! `services` of the dump, with their endpoints by workload uid.

use std::collections::BTreeMap;

use isthmus_model::service::{HealthPolicy, LbMode, LbScope, LoadBalancer};
use isthmus_model::{IpFamilies, NamespacedHostname, Service, Visibility};
use serde::Serialize;
use serde_json::{Value, json};

use super::GatewayDto;
use super::json::Json;
use crate::View;

/// `services[]` up to the endpoints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HeadDto<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<Value>,
    ports: BTreeMap<String, u16>,
}

/// `services[]` after the endpoints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TailDto {
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

/// One service with its endpoints.
pub(super) async fn write(service: &Service, view: &dyn View, json: &mut Json) {
    json.open(b'{');
    json.members(&head(service));
    json.key("endpoints");
    endpoints(&service.key(), view, json).await;
    json.members(&tail(service));
    json.close(b'}');
}

/// Endpoints by workload uid; there can be as many as there are workloads.
pub(super) async fn endpoints(key: &NamespacedHostname, view: &dyn View, json: &mut Json) {
    json.open(b'{');
    for endpoint in view.endpoints(key) {
        json.key(endpoint.uid.as_str());
        json.value(&json!({
            "workloadUid": endpoint.uid.as_str(),
            "port": super::ports(endpoint.ports),
            "status": super::workload::health(endpoint.status),
        }));
        json.send_if_full().await;
    }
    json.close(b'}');
}

fn head(s: &Service) -> HeadDto<'_> {
    HeadDto {
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
    }
}

fn tail(s: &Service) -> TailDto {
    TailDto {
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
