//! `/config_dump`: objects of the vocabulary as the JSON that istioctl's `ztunnel-config` and the field's scripts read
//! (reference: ztunnel's config dump schema). Lists are arrays, never null and never absent.

pub mod pods;
pub mod policy;
pub mod service;
pub mod workload;

use std::collections::BTreeMap;

use base64::Engine as _;
use isthmus_model::workload::PortMap;
use isthmus_model::{GatewayAddress, Health, WorkloadUid};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::Source;

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointView {
    /// The workload.
    pub uid: WorkloadUid,
    /// Its ports for the service.
    pub ports: PortMap,
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

/// Ports as JSON has them: text keys.
pub(crate) fn ports(ports: &PortMap) -> BTreeMap<String, u16> {
    // Sorted as text, as in any JSON object of the reference.
    ports.iter().map(|(service, target)| (service.to_string(), *target)).collect()
}

/// A DTO as a value. Our DTOs have text keys only, so this cannot fail; were one to, it would show as null.
pub(crate) fn value(dto: &impl Serialize) -> Value {
    serde_json::to_value(dto).unwrap_or_default()
}

/// Which part of the dump is wanted; everything by default.
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
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match key {
                "kind" => filter.kind = Some(value.to_owned()),
                "namespace" => filter.namespace = Some(value.to_owned()),
                "name" => filter.name = Some(value.to_owned()),
                _ => {}
            }
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

/// The whole dump.
#[must_use]
pub fn dump(source: &dyn Source, filter: &Filter) -> Value {
    let mut top = Map::new();
    let mut put = |key: &str, value: &dyn Fn() -> Value| {
        if filter.wants(key) {
            top.insert(key.to_owned(), value());
        }
    };
    put("certificates", &|| certificates(source));
    put("config", &|| source.config());
    put("policies", &|| policy::list(&source.policies(), filter));
    put("services", &|| service::list(&source.services(), filter));
    put("stagedServices", &|| staged(source));
    put("staticConfig", &|| static_config(source));
    put("version", &version);
    put("workloads", &|| workload::list(&source.workloads(), filter));
    put("rejectedResources", &|| rejected(source));
    if let Some(pods) = source.pods() {
        put("workloadState", &|| pods::map(&pods));
    }
    Value::Object(top)
}

fn certificates(source: &dyn Source) -> Value {
    let mut all = source.certificates();
    all.sort_by(|a, b| a.identity.cmp(&b.identity));
    let one = |pem: &PemView| {
        json!({
            "pem": base64::engine::general_purpose::STANDARD.encode(&pem.pem),
            "serialNumber": pem.serial,
            "validFrom": pem.valid_from,
            "expirationTime": pem.expires,
        })
    };
    let entry = |view: &CertificateView| {
        json!({
            "identity": view.identity,
            "state": view.state,
            "certChain": view.chain.iter().map(one).collect::<Vec<_>>(),
            "rootCerts": view.roots.iter().map(one).collect::<Vec<_>>(),
        })
    };
    all.iter().map(entry).collect()
}

fn staged(source: &dyn Source) -> Value {
    let entry = |(key, endpoints): (String, Vec<EndpointView>)| (key, service::endpoints(&endpoints));
    Value::Object(source.staged().into_iter().map(entry).collect())
}

fn static_config(source: &dyn Source) -> Value {
    let held = source.static_config();
    let all = Filter::default();
    let services: Vec<_> = held.services.iter().map(|service| (service.clone(), Vec::new())).collect();
    json!({
        "workloads": workload::list(&held.workloads, &all),
        "services": service::list(&services, &all),
        "policies": policy::list(&held.policies, &all),
    })
}

fn rejected(source: &dyn Source) -> Value {
    source.rejected().into_iter().map(|(name, reason)| json!({"name": name, "reason": reason})).collect()
}

fn version() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": option_env!("ISTHMUS_GIT_REVISION").unwrap_or("unknown"),
        "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
        "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "buildStatus": option_env!("ISTHMUS_BUILD_STATUS").unwrap_or("unknown"),
        "istioVersion": "unknown",
        "cryptoProvider": "tls-aws-lc",
    })
}

#[cfg(test)]
mod tests;
