//! The schema of the file: keys, and which of them are optional. `convert` turns it into the model.

mod convert;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_model::service::{HealthPolicy, LbMode, LbScope};
use isthmus_model::workload::{TunnelKind, WorkloadType};
use isthmus_model::{
    Action, GatewayDestination, Health, IpFamilies, NamespacedHostname, NetworkAddress, NetworkMode,
    Protocol, Scope, SpiffeId, Visibility,
};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) workloads: Vec<Workload>,
    #[serde(default)]
    pub(super) services: Vec<Service>,
    #[serde(default)]
    pub(super) policies: Vec<Policy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    workload_ips: Vec<IpAddr>,
    namespace: String,
    services: BTreeMap<ServiceName, BTreeMap<u16, u16>>,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    name: String,
    #[serde(default, with = "ProtocolName")]
    protocol: Protocol,
    #[serde(default, with = "NetworkModeName")]
    network_mode: NetworkMode,
    #[serde(default)]
    network: String,
    #[serde(default)]
    trust_domain: String,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    network_gateway: Option<Gateway>,
    #[serde(default)]
    node: String,
    #[serde(default)]
    workload_name: String,
    #[serde(default, with = "WorkloadTypeName")]
    workload_type: WorkloadType,
    #[serde(default)]
    canonical_name: String,
    #[serde(default)]
    canonical_revision: String,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    application_tunnel: Option<Tunnel>,
    #[serde(default)]
    authorization_policies: Vec<String>,
    #[serde(default, with = "HealthName")]
    status: Health,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    locality: LocalityNames,
    #[serde(default = "one")]
    capacity: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<Vip>,
    ports: BTreeMap<u16, u16>,
    #[serde(default)]
    cidr_vips: Vec<CidrVip>,
    #[serde(default)]
    subject_alt_names: Vec<Id>,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    weighted_waypoints: Vec<WeightedGateway>,
    #[serde(default)]
    load_balancer: Option<Balancer>,
    #[serde(default)]
    ip_families: Option<Families>,
    #[serde(default)]
    canonical: bool,
    #[serde(default, with = "VisibilityName")]
    visibility: Visibility,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    name: String,
    namespace: String,
    #[serde(with = "ScopeName")]
    scope: Scope,
    #[serde(with = "ActionName")]
    action: Action,
    rules: Vec<Vec<Vec<Match>>>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Match {
    namespaces: Vec<Text>,
    not_namespaces: Vec<Text>,
    service_accounts: Vec<Account>,
    not_service_accounts: Vec<Account>,
    principals: Vec<Text>,
    not_principals: Vec<Text>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u16>,
    not_destination_ports: Vec<u16>,
}

/// A YAML tag: `!Exact a`, `!Prefix a`, `!Suffix a`, `!Presence []`.
#[derive(Deserialize)]
enum Text {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence(#[expect(dead_code, reason = "the empty list says nothing")] Option<[(); 0]>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Account {
    namespace: String,
    service_account: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gateway {
    destination: Destination,
    hbone_mtls_port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WeightedGateway {
    destination: Gateway,
    weight: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tunnel {
    #[serde(with = "TunnelKindName")]
    protocol: TunnelKind,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LocalityNames {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CidrVip {
    network: String,
    cidr: IpNet,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Balancer {
    routing_preferences: Vec<LbScopeName>,
    #[serde(with = "LbModeName")]
    mode: LbMode,
    #[serde(default = "only_healthy", with = "HealthPolicyName")]
    health_policy: HealthPolicy,
}

/// `<network>/<ip>`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Vip(NetworkAddress);

/// `<network>/<ip>` or `<namespace>/<hostname>`.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Destination(GatewayDestination);

/// `<namespace>/<hostname>`.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
struct ServiceName(NamespacedHostname);

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Id(SpiffeId);

/// Declares how the variants of a model enum are spelled in the file.
macro_rules! spelled {
    ($($name:ident of $model:ty { $($variant:ident = $text:literal),+ $(,)? })+) => {$(
        #[derive(Deserialize)]
        enum $name { $(#[serde(rename = $text)] $variant),+ }

        impl From<$name> for $model {
            fn from(name: $name) -> Self {
                match name { $($name::$variant => Self::$variant),+ }
            }
        }

        impl $name {
            #[allow(dead_code, reason = "some enums are only read inside of others")]
            fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<$model, D::Error> {
                <Self as Deserialize>::deserialize(from).map(Into::into)
            }
        }
    )+};
}

spelled! {
    ProtocolName of Protocol { Tcp = "TCP", Hbone = "HBONE" }
    NetworkModeName of NetworkMode { Standard = "Standard", HostNetwork = "HostNetwork" }
    WorkloadTypeName of WorkloadType { Deployment = "deployment", CronJob = "cronjob", Pod = "pod", Job = "job" }
    HealthName of Health { Healthy = "Healthy", Unhealthy = "Unhealthy" }
    TunnelKindName of TunnelKind { None = "NONE", Proxy = "PROXY" }
    ScopeName of Scope { Global = "Global", Namespace = "Namespace", WorkloadSelector = "WorkloadSelector" }
    ActionName of Action { Allow = "Allow", Deny = "Deny" }
    VisibilityName of Visibility { Public = "Public", Namespace = "Namespace" }
    Families of IpFamilies { Dual = "Dual", Ipv4 = "IPv4", Ipv6 = "IPv6" }
    LbModeName of LbMode {
        Standard = "Standard", Strict = "Strict", Failover = "Failover", Passthrough = "Passthrough",
    }
    HealthPolicyName of HealthPolicy { OnlyHealthy = "OnlyHealthy", AllowAll = "AllowAll" }
    LbScopeName of LbScope {
        Region = "Region", Zone = "Zone", Subzone = "Subzone", Node = "Node", Cluster = "Cluster",
        Network = "Network",
    }
}

fn one() -> u32 {
    1
}

fn only_healthy() -> HealthPolicy {
    HealthPolicy::OnlyHealthy
}
