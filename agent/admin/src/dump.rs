//! `/config_dump`: the model as the JSON that `istioctl ztunnel-config` reads (ztunnel's schema). Lists are arrays, never
//! null and never absent. The dump is streamed object by object from one snapshot: it allocates a pointer per object of
//! one kind, and yields to the runtime after each chunk.

mod certificate;
mod json;
mod order;
pub mod pods;
mod policy;
mod service;
mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_model::workload::PortMap;
use isthmus_model::{GatewayAddress, Health, NamespacedHostname, Policy, Service, Workload, WorkloadUid};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc;

use self::json::Json;
use self::order::Order;
use crate::{Source, View, build, query};

/// One endpoint of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointView<'a> {
    /// The workload.
    pub uid: &'a WorkloadUid,
    /// Its ports for the service.
    pub ports: &'a PortMap,
    /// Its health.
    pub status: Health,
}

/// One managed certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateView {
    /// The SPIFFE identity.
    pub identity: String,
    /// `Initializing`, `Available` or `Unavailable: <error>`.
    pub state: String,
    /// Leaf and intermediates.
    pub chain: Vec<PemView>,
    /// Trusted roots.
    pub roots: Vec<PemView>,
}

/// One X.509 certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemView {
    /// PEM text.
    pub pem: String,
    /// Serial number in decimal.
    pub serial: String,
    /// Start of validity, RFC 3339 in whole seconds.
    pub valid_from: String,
    /// End of validity, RFC 3339 in whole seconds.
    pub expires: String,
}

/// A gateway or waypoint reference.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayDto {
    destination: String,
    hbone_mtls_port: u16,
}

impl From<&GatewayAddress> for GatewayDto {
    fn from(gateway: &GatewayAddress) -> Self {
        Self { destination: gateway.destination.to_string(), hbone_mtls_port: gateway.hbone_mtls_port }
    }
}

/// A port map with string keys, as JSON requires.
pub(crate) fn ports(ports: &PortMap) -> BTreeMap<String, u16> {
    // Sorted as strings, as ztunnel's JSON objects are.
    ports.iter().map(|(service, target)| (service.to_string(), *target)).collect()
}

/// Selects a part of the dump; everything by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this top-level key.
    pub kind: Option<String>,
    /// Only objects of this namespace.
    pub namespace: Option<String>,
    /// Only objects of this name.
    pub name: Option<String>,
}

impl Filter {
    /// Reads `kind=…&namespace=…&name=…`; unknown keys are ignored.
    #[must_use]
    pub fn from_query(query: &str) -> Self {
        let mut filter = Self::default();
        for (key, value) in query::pairs(query) {
            let wanted = match key.as_ref() {
                "kind" => &mut filter.kind,
                "namespace" => &mut filter.namespace,
                "name" => &mut filter.name,
                _ => continue,
            };
            // The index page's form sends its empty fields, too.
            *wanted = Some(value.into_owned()).filter(|value| !value.is_empty());
        }
        filter
    }

    fn wants(&self, kind: &str) -> bool {
        self.kind.as_deref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(kind))
    }

    fn fits(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
            && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }
}

/// Writes the dump into a channel, chunk by chunk. The snapshot is taken on first poll.
pub(crate) async fn write(source: Arc<dyn Source>, filter: Filter, out: mpsc::Sender<Bytes>) {
    let view = source.pin();
    let (source, filter, mut whole) = (source.as_ref(), &filter, Json::new(out));
    let text = &mut whole;
    text.open(b'{');
    if text.wants(filter, "certificates") {
        certificate::list(source.certificates(), filter, text).await;
    }
    if text.wants(filter, "config") {
        text.value(&source.config());
    }
    if text.wants(filter, "policies") {
        policies(view.as_ref(), filter, text).await;
    }
    if text.wants(filter, "services") {
        services(view.as_ref(), filter, text).await;
    }
    if text.wants(filter, "stagedServices") {
        staged(view.as_ref(), filter, text).await;
    }
    if text.wants(filter, "staticConfig") {
        static_config(source.static_config().as_ref(), filter, text).await;
    }
    if text.wants(filter, "version") {
        text.value(&version(&source.istio_version()));
    }
    if text.wants(filter, "workloads") {
        workloads(view.as_ref(), filter, text).await;
    }
    if text.wants(filter, "rejectedResources") {
        rejected(source, filter, text).await;
    }
    if let Some(pods) = source.pods()
        && text.wants(filter, "workloadState")
    {
        pods::map(pods, filter, text).await;
    }
    whole.close(b'}');
    whole.finish().await;
}

impl Json {
    /// Begins a top-level member if the filter selects it.
    fn wants(&mut self, filter: &Filter, kind: &str) -> bool {
        let wanted = filter.wants(kind);
        if wanted {
            self.key(kind);
        }
        wanted
    }
}

async fn workloads(view: &dyn View, filter: &Filter, json: &mut Json) {
    let wanted = |w: &Workload| filter.fits(w.namespace.as_str(), w.name.as_str());
    let mut order = Order::of(view.workloads(), wanted, json).await;
    json.open(b'[');
    while let Some(workload) = order.next() {
        json.item();
        json.value(&workload::dto(workload));
        json.send_if_full().await;
    }
    json.close(b']');
}

async fn services(view: &dyn View, filter: &Filter, json: &mut Json) {
    let wanted = |s: &Service| filter.fits(s.namespace.as_str(), s.name.as_str());
    let mut order = Order::of(view.services(), wanted, json).await;
    json.open(b'[');
    while let Some(service) = order.next() {
        json.item();
        service::write(service, view, json).await;
        json.send_if_full().await;
    }
    json.close(b']');
}

async fn policies(view: &dyn View, filter: &Filter, json: &mut Json) {
    let wanted = |p: &Policy| filter.fits(p.namespace.as_str(), p.name.as_str());
    let mut order = Order::of(view.policies(), wanted, json).await;
    json.open(b'[');
    while let Some(policy) = order.next() {
        json.item();
        json.value(&policy::one(policy));
        json.send_if_full().await;
    }
    json.close(b']');
}

async fn staged(view: &dyn View, filter: &Filter, json: &mut Json) {
    let wanted = |key: &NamespacedHostname| filter.fits(key.namespace.as_str(), key.hostname.as_str());
    let mut order = Order::of(view.staged(), wanted, json).await;
    json.open(b'{');
    while let Some(key) = order.next() {
        json.key(&key.to_string());
        service::endpoints(key, view, json).await;
        json.send_if_full().await;
    }
    json.close(b'}');
}

async fn static_config(held: &dyn View, filter: &Filter, json: &mut Json) {
    json.open(b'{');
    json.key("workloads");
    workloads(held, filter, json).await;
    json.key("services");
    services(held, filter, json).await;
    json.key("policies");
    policies(held, filter, json).await;
    json.close(b'}');
}

async fn rejected(source: &dyn Source, filter: &Filter, json: &mut Json) {
    json.open(b'[');
    for (name, reason) in source.rejected() {
        if filter.name.as_ref().is_none_or(|wanted| *wanted == name) {
            json.item();
            json.value(&json!({"name": name, "reason": reason}));
            json.send_if_full().await;
        }
    }
    json.close(b']');
}

fn version(istio: &str) -> serde_json::Value {
    json!({
        "version": build::VERSION,
        "gitRevision": build::REVISION,
        "rustVersion": build::RUSTC,
        "buildProfile": build::PROFILE,
        "buildStatus": build::STATUS,
        "istioVersion": istio,
        "cryptoProvider": "tls-aws-lc",
    })
}

#[cfg(test)]
pub(crate) mod tests;
