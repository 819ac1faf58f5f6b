//! `workloadState` of the dump: the pods of this node and their open connections.

use isthmus_model::{Namespace, PodUid, ServiceAccount, Text};
use serde_json::{Map, Value, json};

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Its UID.
    pub uid: PodUid,
    /// Its name.
    pub name: Text,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
    /// Its connections; `None` while its listeners are pending.
    pub connections: Option<Connections>,
}

/// Open connections of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connections {
    /// Towards the pod.
    pub inbound: Vec<ConnectionView>,
    /// From the pod.
    pub outbound: Vec<ConnectionView>,
}

/// One open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    /// Source address.
    pub src: String,
    /// What was asked for.
    pub original_dst: Option<String>,
    /// Where it went.
    pub actual_dst: String,
    /// `TCP`, `HBONE` or `DOUBLEHBONE`.
    pub protocol: &'static str,
}

/// The object, keyed by pod UID.
pub(super) fn map(pods: &[PodView]) -> Value {
    let mut sorted: Vec<_> = pods.iter().collect();
    sorted.sort_by(|a, b| a.uid.cmp(&b.uid));
    Value::Object(sorted.into_iter().map(|pod| (pod.uid.to_string(), one(pod))).collect())
}

fn one(pod: &PodView) -> Value {
    let mut object = Map::new();
    object.insert("state".into(), if pod.connections.is_some() { "Up" } else { "Pending" }.into());
    if let Some(open) = &pod.connections {
        let list = |all: &[ConnectionView]| all.iter().map(connection).collect::<Value>();
        object.insert(
            "connections".into(),
            json!({"inbound": list(&open.inbound), "outbound": list(&open.outbound)}),
        );
    }
    let info = json!({
        "name": pod.name.as_str(),
        "namespace": pod.namespace.as_str(),
        "serviceAccount": pod.service_account.as_str(),
    });
    object.insert("info".into(), info);
    Value::Object(object)
}

fn connection(view: &ConnectionView) -> Value {
    json!({
        "src": view.src,
        "originalDst": view.original_dst,
        "actualDst": view.actual_dst,
        "protocol": view.protocol,
    })
}
