//! What all pods of a process share: the mesh's state, certificates, settings and metrics. Owns nothing of a pod.

use crate::host_resolver::HostResolver;
use std::sync::Arc;

use isthmus_hbone::Settings;
use isthmus_identity::{CertSource, Certificate};
use isthmus_model::{ClusterId, NetworkId, SpiffeId};
use isthmus_rt::fair::FairScheduler;
use isthmus_state::State;

use crate::config::Config;
use crate::error::Error;
use crate::telemetry::Metrics;

/// What all pods share.
pub struct ProxyContext {
    /// What the mesh looks like.
    pub state: State,
    /// Certificates of the identities on this node.
    pub certs: Arc<dyn CertSource>,
    /// The network this process is in.
    pub network: NetworkId,
    /// The cluster this process is in.
    pub cluster_id: ClusterId,
    /// Addresses of workloads that are known by a hostname only.
    pub host_resolver: Arc<dyn HostResolver>,
    /// Settings of tunnels.
    pub settings: Settings,
    /// Settings of the data plane.
    pub config: Config,
    /// Metrics of the data plane.
    pub metrics: Arc<Metrics>,
    /// Divides the CPU time of the data plane between the pods.
    pub scheduler: FairScheduler,
}

impl ProxyContext {
    /// The certificate of an identity. The first one may still be signed; that is waited for no longer than a handshake.
    pub(crate) async fn certificate(&self, id: &SpiffeId) -> Result<Arc<Certificate>, Error> {
        let deadline = self.config.tls_deadline;
        let signed = tokio::time::timeout(deadline, self.certs.certificate(id)).await;
        Ok(signed.map_err(|_| Error::NoCertificate { identity: id.clone(), after: deadline })??)
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
