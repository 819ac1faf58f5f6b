//! The part of each object that the translation uses. Fields that are not needed are not read, so that newer versions
//! of an API work; the status stays JSON, since it is written by several controllers.

use std::collections::BTreeMap;

use isthmus_proto::enroll::{LabelSelector, Labels};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::GATEWAY_NAME;
use crate::kinds::{GROUP, Kind};

/// Namespace, empty for kinds without, and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ObjectName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// What is written back with a status, and what orders routes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) generation: i64,
    pub(crate) resource: String,
    /// RFC 3339, so its order is that of time.
    pub(crate) created: String,
}

/// One object of a watched kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Object {
    Class(GatewayClass),
    Gateway(Box<Gateway>),
    Route(Box<Route>),
    Grant(ReferenceGrant),
    Namespace(Labels),
    Service(Service),
    Pod(Pod),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GatewayClass {
    pub(crate) controller: String,
    pub(crate) version: Version,
    pub(crate) status: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gateway {
    pub(crate) labels: Labels,
    pub(crate) spec: GatewaySpec,
    pub(crate) version: Version,
    pub(crate) status: Value,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewaySpec {
    pub(crate) gateway_class_name: String,
    #[serde(default)]
    pub(crate) listeners: Vec<ListenerSpec>,
    #[serde(default)]
    pub(crate) addresses: Vec<AddressSpec>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerSpec {
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    #[serde(default)]
    pub(crate) hostname: Option<String>,
    #[serde(default)]
    pub(crate) tls: TlsSpec,
    #[serde(default)]
    pub(crate) allowed_routes: AllowedRoutes,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct TlsSpec {
    #[serde(default)]
    pub(crate) mode: Option<String>,
    #[serde(default)]
    pub(crate) options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct AllowedRoutes {
    #[serde(default)]
    pub(crate) namespaces: RouteNamespaces,
    #[serde(default)]
    pub(crate) kinds: Vec<GroupKind>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct RouteNamespaces {
    #[serde(default)]
    pub(crate) from: Option<String>,
    #[serde(default)]
    pub(crate) selector: LabelSelector,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct GroupKind {
    #[serde(default)]
    pub(crate) group: Option<String>,
    pub(crate) kind: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct AddressSpec {
    #[serde(default, rename = "type")]
    pub(crate) kind: Option<String>,
    #[serde(default)]
    pub(crate) value: String,
}

/// A TLSRoute or a TCPRoute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Route {
    pub(crate) spec: RouteSpec,
    pub(crate) version: Version,
    pub(crate) status: Value,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteSpec {
    /// As they are, since the status repeats them.
    #[serde(default)]
    pub(crate) parent_refs: Vec<Value>,
    #[serde(default)]
    pub(crate) hostnames: Vec<String>,
    #[serde(default)]
    pub(crate) rules: Vec<RouteRule>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteRule {
    #[serde(default)]
    pub(crate) backend_refs: Vec<BackendRef>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct BackendRef {
    #[serde(default)]
    pub(crate) group: Option<String>,
    #[serde(default)]
    pub(crate) kind: Option<String>,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    #[serde(default)]
    pub(crate) port: Option<u16>,
    #[serde(default)]
    pub(crate) weight: Option<u32>,
}

/// One entry of `parentRefs`, with its defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParentRef {
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    pub(crate) section_name: Option<String>,
    #[serde(default)]
    pub(crate) port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ReferenceGrant {
    #[serde(default)]
    pub(crate) from: Vec<GrantFrom>,
    #[serde(default)]
    pub(crate) to: Vec<GrantTo>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct GrantFrom {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct GrantTo {
    pub(crate) group: String,
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) name: Option<String>,
}

/// A Service with what it is reached at from outside, since it may be a gateway's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// The Gateway that it belongs to, by its label.
    pub(crate) gateway: Option<String>,
    pub(crate) ingress: Vec<Ingress>,
    pub(crate) external_ips: Vec<String>,
}

/// One address that a load balancer gave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Ingress {
    #[serde(default)]
    pub(crate) ip: Option<String>,
    #[serde(default)]
    pub(crate) hostname: Option<String>,
}

/// A pod of the gateway. One on the host's network is reached at its node's address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) gateway: Option<String>,
    pub(crate) host_network: bool,
    pub(crate) ready: bool,
    pub(crate) host_ips: Vec<String>,
}

// === impl Object ===

impl Object {
    /// Reads an object of a kind.
    ///
    /// # Errors
    /// When a field that is needed is missing or has another type.
    pub(crate) fn parse(kind: Kind, object: &DynamicObject) -> Result<Self, serde_json::Error> {
        let labels = object.labels();
        let gateway = labels.get(GATEWAY_NAME).cloned();
        let status = object.data.get("status").cloned().unwrap_or_default();
        let version = Version::of(object);
        Ok(match kind {
            Kind::GatewayClass => {
                let controller = text(&object.data, "/spec/controllerName").to_owned();
                Self::Class(GatewayClass { controller, version, status })
            }
            Kind::Gateway => {
                let (labels, spec) = (labels.clone(), field(&object.data, "/spec")?);
                Self::Gateway(Box::new(Gateway { labels, spec, version, status }))
            }
            Kind::TlsRoute | Kind::TcpRoute => {
                Self::Route(Box::new(Route { spec: field(&object.data, "/spec")?, version, status }))
            }
            Kind::ReferenceGrant => Self::Grant(field(&object.data, "/spec")?),
            Kind::Namespace => Self::Namespace(labels.clone()),
            Kind::Service => Self::Service(Service {
                gateway,
                ingress: list(&object.data, "/status/loadBalancer/ingress")?,
                external_ips: list(&object.data, "/spec/externalIPs")?,
            }),
            Kind::Pod => Self::Pod(pod(gateway, &object.data)?),
        })
    }
}

fn pod(gateway: Option<String>, data: &Value) -> Result<Pod, serde_json::Error> {
    #[derive(Deserialize)]
    struct HostIp {
        ip: String,
    }
    let mut host_ips: Vec<String> =
        list::<HostIp>(data, "/status/hostIPs")?.into_iter().map(|one| one.ip).collect();
    if host_ips.is_empty() {
        host_ips.extend(Some(text(data, "/status/hostIP").to_owned()).filter(|ip| !ip.is_empty()));
    }
    let conditions = data.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
    let host_network = data.pointer("/spec/hostNetwork").and_then(Value::as_bool).unwrap_or_default();
    Ok(Pod { gateway, host_network, ready, host_ips })
}

// === impl ObjectName ===

impl ObjectName {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub(crate) fn of(object: &DynamicObject) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

// === impl Version ===

impl Version {
    fn of(object: &DynamicObject) -> Self {
        Self {
            generation: object.metadata.generation.unwrap_or_default(),
            resource: object.resource_version().unwrap_or_default(),
            created: object.creation_timestamp().map(|time| time.0.to_string()).unwrap_or_default(),
        }
    }
}

// === impl ParentRef ===

impl ParentRef {
    /// Whether a route of this namespace means this Gateway.
    pub(crate) fn is(&self, gateway: &ObjectName, route_namespace: &str) -> bool {
        self.group.as_deref().unwrap_or(GROUP) == GROUP
            && self.kind.as_deref().unwrap_or("Gateway") == "Gateway"
            && self.namespace.as_deref().unwrap_or(route_namespace) == gateway.namespace
            && self.name == gateway.name
    }
}

/// The string at a JSON pointer, or the empty string.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn field<T: DeserializeOwned>(value: &Value, pointer: &str) -> Result<T, serde_json::Error> {
    T::deserialize(value.pointer(pointer).unwrap_or(&Value::Null))
}

/// The list at a JSON pointer; one that is absent is empty.
fn list<T: DeserializeOwned>(value: &Value, pointer: &str) -> Result<Vec<T>, serde_json::Error> {
    value.pointer(pointer).filter(|list| !list.is_null()).map_or_else(|| Ok(Vec::new()), Vec::deserialize)
}
