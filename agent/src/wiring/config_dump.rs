//! The live parts as the admin endpoints see them.

use std::sync::Arc;

use isthmus_admin::dump::pods::PodView;
use isthmus_admin::dump::{CertificateView, EndpointView, PemView};
use isthmus_admin::{Source, StaticConfig};
use isthmus_control::xds::Rejections;
use isthmus_identity::{Described, Manager, State as CertState};
use isthmus_model::{NamespacedHostname, Policy, Service, Workload};
use isthmus_state::{Snapshot, State};
use serde_json::{Value, json};

use super::pods::Pods;
use crate::config::agent::{AgentConfig, ControlPlane};
use crate::config::{Roots, Token};

/// What the endpoints show of a running process.
pub(crate) struct Live {
    pub(crate) state: State,
    pub(crate) certs: Manager,
    /// `None` for the gateway.
    pub(crate) pods: Option<Arc<Pods>>,
    pub(crate) rejections: Rejections,
    pub(crate) config: Value,
    pub(crate) fixed: StaticConfig,
}

impl Source for Live {
    fn workloads(&self) -> Vec<Arc<Workload>> {
        self.state.load().workloads().cloned().collect()
    }

    fn services(&self) -> Vec<(Arc<Service>, Vec<EndpointView>)> {
        let snapshot = self.state.load();
        snapshot
            .services()
            .map(|service| (Arc::clone(service), endpoints(&snapshot, &service.key())))
            .collect()
    }

    fn staged(&self) -> Vec<(String, Vec<EndpointView>)> {
        let snapshot = self.state.load();
        snapshot.staged().map(|key| (key.to_string(), endpoints(&snapshot, key))).collect()
    }

    fn policies(&self) -> Vec<Arc<Policy>> {
        self.state.load().policies().map(|(_, policy)| Arc::clone(policy)).collect()
    }

    fn certificates(&self) -> Vec<CertificateView> {
        let view = |entry: isthmus_identity::Entry| {
            let (chain, roots) = match &entry.state {
                CertState::Available(held) => (pems(held.chain()), pems(held.roots())),
                _ => (Vec::new(), Vec::new()),
            };
            CertificateView {
                identity: entry.identity.to_string(),
                state: entry.state.to_string(),
                chain,
                roots,
            }
        };
        self.certs.snapshot().into_iter().map(view).collect()
    }

    fn pods(&self) -> Option<Vec<PodView>> {
        self.pods.as_ref().map(|pods| pods.view())
    }

    fn rejected(&self) -> Vec<(String, String)> {
        self.rejections.list().into_iter().map(|rejection| (rejection.name, rejection.reason)).collect()
    }

    fn config(&self) -> Value {
        self.config.clone()
    }

    fn static_config(&self) -> StaticConfig {
        self.fixed.clone()
    }
}

fn endpoints(snapshot: &Snapshot, key: &NamespacedHostname) -> Vec<EndpointView> {
    let view = |endpoint: isthmus_state::Endpoint<'_>| EndpointView {
        uid: endpoint.uid().clone(),
        ports: endpoint.ports.clone(),
        status: endpoint.status(),
    };
    snapshot.endpoints(key).map(view).collect()
}

fn pems(described: &[Described]) -> Vec<PemView> {
    let view = |one: &Described| PemView {
        pem: one.pem.clone(),
        serial: one.serial_number.clone(),
        valid_from: one.valid_from.clone(),
        expires: one.expiration_time.clone(),
    };
    described.iter().map(view).collect()
}

/// The settings under the names of the field's config dump. Header values and tokens are not shown.
pub(crate) fn config(config: &AgentConfig) -> Value {
    let place = &config.place;
    let address = |plane: &Option<ControlPlane>| plane.as_ref().map(|plane| plane.address.clone());
    let ca = match &config.ca {
        crate::config::agent::CaChoice::Remote(plane) => Some(plane.clone()),
        _ => None,
    };
    json!({
        "proxyMode": "Shared",
        "network": place.network.as_str(),
        "clusterId": place.cluster.as_str(),
        "clusterDomain": place.domain,
        "localNode": place.node.as_str(),
        "xdsAddress": address(&config.xds),
        "xdsRootCert": config.xds.as_ref().map(roots),
        "xdsHeaders": config.xds.as_ref().map(headers).unwrap_or_default(),
        "xdsToken": config.xds.as_ref().map(token),
        "caAddress": address(&ca),
        "caRootCert": ca.as_ref().map(roots),
        "caHeaders": ca.as_ref().map(headers).unwrap_or_default(),
        "fakeCa": matches!(config.ca, crate::config::agent::CaChoice::Fake),
        "adminAddr": config.ports.admin.to_string(),
        "statsAddr": config.ports.stats.to_string(),
        "readinessAddr": config.ports.ready.to_string(),
        "inpodUds": config.inpod_uds.display().to_string(),
        "dnsProxy": config.dns,
        "dnsProxyAddr": format!("localhost:{}", config.dns_port),
        "packetMark": config.sockets.mark,
        "inpodPortReuse": config.sockets.reuse_port,
        "ipv6Enabled": config.sockets.ipv6,
        "requireOriginalSource": config.sockets.original_source,
        "numWorkerThreads": config.threads,
        "poolMaxStreamsPerConn": config.tunnel.max_streams,
        "poolUnusedReleaseTimeout": humantime::format_duration(config.tunnel.idle).to_string(),
        "selfTerminationDeadline": humantime::format_duration(config.drain).to_string(),
        "secretTtl": humantime::format_duration(config.secret_ttl).to_string(),
        "enableEnhancedBaggage": config.response_baggage,
        "proxyMetadata": place.metadata,
    })
}

fn roots(plane: &ControlPlane) -> Value {
    match &plane.roots {
        Roots::File(path) => json!({"File": path.display().to_string()}),
        Roots::Pem(_) => json!("Static"),
    }
}

fn token(plane: &ControlPlane) -> Value {
    match &plane.token {
        Token::File(path) => json!({"File": path.display().to_string()}),
        Token::None => Value::Null,
    }
}

fn headers(plane: &ControlPlane) -> Vec<(String, &'static str)> {
    plane.headers.keys().map(|name| (name.clone(), "(hidden)")).collect()
}
