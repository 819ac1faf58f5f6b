//! `workloadState` of the dump: the pods of this node and their open connections.

use std::fmt;
use std::sync::Arc;

use isthmus_model::{Namespace, PodUid, ServiceAccount, Text};
use serde_json::{Value, json};

use super::Filter;
use super::json::Json;
use crate::Each;

/// One pod.
pub struct PodView<'a> {
    /// Its UID.
    pub uid: PodUid,
    /// Its name.
    pub name: Text,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
    /// Why it is not served.
    pub reason: Option<Arc<str>>,
    /// Its open connections; `None` until its listeners are bound.
    pub connections: Option<Connections<'a>>,
}

/// Open connections of a pod, read lazily.
pub struct Connections<'a> {
    /// Towards the pod.
    pub inbound: Each<'a, ConnectionView>,
    /// From the pod.
    pub outbound: Each<'a, ConnectionView>,
}

/// One open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionView {
    /// Source address.
    pub src: String,
    /// Destination that the client asked for.
    pub original_dst: Option<String>,
    /// Destination that was dialled.
    pub actual_dst: String,
    /// `TCP`, `HBONE` or `DOUBLEHBONE`.
    pub protocol: &'static str,
}

impl fmt::Debug for PodView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodView").field("uid", &self.uid).finish_non_exhaustive()
    }
}

impl fmt::Debug for Connections<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

/// Writes the object, keyed by pod UID.
pub(super) async fn map(pods: Each<'_, PodView<'_>>, filter: &Filter, json: &mut Json) {
    json.open(b'{');
    for pod in pods {
        if filter.fits(pod.namespace.as_str(), pod.name.as_str()) {
            json.key(pod.uid.as_str());
            one(pod, json).await;
        }
        json.yield_if_long().await;
    }
    json.close(b'}');
}

async fn one(pod: PodView<'_>, json: &mut Json) {
    json.open(b'{');
    json.key("state");
    json.value(&if pod.connections.is_some() { "Up" } else { "Pending" });
    if let Some(reason) = &pod.reason {
        json.key("reason");
        json.value(&&**reason);
    }
    if let Some(open) = pod.connections {
        json.key("connections");
        json.open(b'{');
        for (direction, list) in [("inbound", open.inbound), ("outbound", open.outbound)] {
            json.key(direction);
            json.open(b'[');
            for view in list {
                json.item();
                json.value(&connection(&view));
                json.send_if_full().await;
            }
            json.close(b']');
        }
        json.close(b'}');
    }
    json.key("info");
    json.value(&json!({
        "name": pod.name.as_str(),
        "namespace": pod.namespace.as_str(),
        "serviceAccount": pod.service_account.as_str(),
    }));
    json.close(b'}');
    json.send_if_full().await;
}

fn connection(view: &ConnectionView) -> Value {
    json!({
        "src": view.src,
        "originalDst": view.original_dst,
        "actualDst": view.actual_dst,
        "protocol": view.protocol,
    })
}
