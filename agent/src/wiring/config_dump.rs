//! The config dump's sources: implements the admin crate's traits over the state, the certificates and the pods.

mod settings;

use std::sync::Arc;

use isthmus_admin::dump::pods::PodView;
use isthmus_admin::dump::{CertificateView, EndpointView, PemView};
use isthmus_admin::{Each, Source, View};
use isthmus_control::local::LocalConfig;
use isthmus_control::xds::Rejections;
use isthmus_identity::{CertState, CertSummary, IdentityEntry, Manager};
use isthmus_model::{NamespacedHostname, Policy, Service, Workload};
use isthmus_state::{Snapshot, State};
use serde_json::Value;

use super::pods::Pods;
use crate::config::agent::{AgentConfig, LocalInfo};

/// Source of the config dump of a running process.
pub(crate) struct ConfigDumpSource {
    state: State,
    certs: Manager,
    /// `None` for the gateway.
    pods: Option<Arc<Pods>>,
    rejections: Rejections,
    config: Value,
    static_config: Arc<StaticConfigView>,
    istio_version: String,
}

impl ConfigDumpSource {
    pub(crate) fn new(
        config: &AgentConfig,
        state: State,
        certs: Manager,
        rejections: Rejections,
        pods: Option<Arc<Pods>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            state,
            certs,
            pods,
            rejections,
            config: settings::config(config),
            static_config: Arc::new(StaticConfigView(config.static_config.clone())),
            istio_version: istio_version(&config.local_info),
        })
    }
}

/// Release of Istio that the chart deployed this for (`ISTIO_META_ISTIO_VERSION`).
pub(crate) fn istio_version(local_info: &LocalInfo) -> String {
    local_info.metadata.get("ISTIO_VERSION").cloned().unwrap_or_else(|| "unknown".to_owned())
}

impl Source for ConfigDumpSource {
    fn pin(&self) -> Arc<dyn View> {
        Arc::new(SnapshotView(self.state.load()))
    }

    fn certificates(&self) -> Each<'_, CertificateView> {
        Box::new(self.certs.snapshot().into_iter().map(certificate))
    }

    fn pods(&self) -> Option<Each<'_, PodView<'_>>> {
        self.pods.as_ref().map(|pods| pods.view())
    }

    fn rejected(&self) -> Vec<(String, String)> {
        self.rejections.list().into_iter().map(|rejection| (rejection.name, rejection.reason)).collect()
    }

    fn config(&self) -> Value {
        self.config.clone()
    }

    fn static_config(&self) -> Arc<dyn View> {
        Arc::clone(&self.static_config) as Arc<dyn View>
    }

    fn istio_version(&self) -> String {
        self.istio_version.clone()
    }
}

/// One snapshot of the state.
struct SnapshotView(Arc<Snapshot>);

impl View for SnapshotView {
    fn workloads(&self) -> Each<'_, &Workload> {
        Box::new(self.0.workloads().map(AsRef::as_ref))
    }

    fn services(&self) -> Each<'_, &Service> {
        Box::new(self.0.services().map(AsRef::as_ref))
    }

    fn staged(&self) -> Each<'_, &NamespacedHostname> {
        Box::new(self.0.staged())
    }

    fn policies(&self) -> Each<'_, &Policy> {
        Box::new(self.0.policies().map(|(_, policy)| policy.as_ref()))
    }

    fn endpoints<'a>(&'a self, service: &'a NamespacedHostname) -> Each<'a, EndpointView<'a>> {
        Box::new(self.0.endpoints(service).map(|endpoint| EndpointView {
            uid: endpoint.uid(),
            ports: endpoint.ports,
            status: endpoint.status(),
        }))
    }
}

/// The static configuration, as read at start.
struct StaticConfigView(LocalConfig);

impl View for StaticConfigView {
    fn workloads(&self) -> Each<'_, &Workload> {
        Box::new(self.0.workloads.iter())
    }

    fn services(&self) -> Each<'_, &Service> {
        Box::new(self.0.services.iter())
    }

    fn staged(&self) -> Each<'_, &NamespacedHostname> {
        Box::new(std::iter::empty())
    }

    fn policies(&self) -> Each<'_, &Policy> {
        Box::new(self.0.policies.iter())
    }

    fn endpoints<'a>(&'a self, service: &'a NamespacedHostname) -> Each<'a, EndpointView<'a>> {
        Box::new(self.0.workloads.iter().filter_map(|workload| {
            let ports = workload.services.get(service)?;
            Some(EndpointView { uid: &workload.uid, ports, status: workload.status })
        }))
    }
}

fn certificate(entry: IdentityEntry) -> CertificateView {
    let (chain, roots) = match &entry.state {
        CertState::Available(held) => (pems(held.chain()), pems(held.roots())),
        _ => (Vec::new(), Vec::new()),
    };
    CertificateView { identity: entry.identity.to_string(), state: entry.state.to_string(), chain, roots }
}

fn pems(described: &[CertSummary]) -> Vec<PemView> {
    let view = |one: &CertSummary| PemView {
        pem: one.pem.clone(),
        serial: one.serial_number.clone(),
        valid_from: one.valid_from.clone(),
        expires: one.expiration_time.clone(),
    };
    described.iter().map(view).collect()
}
