//! What all pods of the process share: mesh state, certificates, settings and metrics. Holds nothing of a single pod.

use std::sync::Arc;

use isthmus_hbone::Settings;
use isthmus_identity::{CertSource, Certificate};
use isthmus_model::{ClusterId, NetworkId, SpiffeId};
use isthmus_rt::fair::FairScheduler;
use isthmus_rt::threads::Threads;
use isthmus_state::State;

use crate::config::Config;
use crate::error::Error;
use crate::host_resolver::HostResolver;
use crate::telemetry::Metrics;

/// Shared by all pods of the process.
pub struct ProxyContext {
    /// Workloads, services and policies of the mesh.
    pub state: State,
    /// Certificates of the local identities.
    pub certs: Arc<dyn CertSource>,
    /// The local network.
    pub network: NetworkId,
    /// The local cluster.
    pub cluster_id: ClusterId,
    /// Resolves workloads that have a hostname in place of addresses.
    pub host_resolver: Arc<dyn HostResolver>,
    /// Settings of HBONE tunnels.
    pub settings: Settings,
    /// Settings of the data plane.
    pub config: Config,
    /// Metrics of the data plane.
    pub metrics: Arc<Metrics>,
    /// The threads that carry connections.
    pub threads: Threads,
    /// Shares the CPU time of the data plane between the pods.
    pub scheduler: FairScheduler,
}

impl ProxyContext {
    /// The certificate of a local identity. Waits for the CA to issue the first one, up to the deadline of a handshake.
    pub(crate) async fn certificate(&self, id: &SpiffeId) -> Result<Arc<Certificate>, Error> {
        let deadline = self.config.tls_deadline;
        let issued = tokio::time::timeout(deadline, self.certs.certificate(id)).await;
        Ok(issued.map_err(|_| Error::NoCertificate { identity: id.clone(), after: deadline })??)
    }
}

impl std::fmt::Debug for ProxyContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyContext")
            .field("network", &self.network)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
