//! ZDS, the server's side: how the data plane of this node learns of its pods. Owns the socket, the connections and what
//! each has been told; must not know rules, annotations or who wants a pod.

pub(crate) mod hub;
pub(crate) mod server;
pub(crate) mod session;

use isthmus_model::name::PodUid;
use isthmus_proto::zds::WorkloadInfo;
use isthmus_rt::BoxFuture;
use isthmus_sys::netns::Netns;
use tokio::time::Instant;

use crate::pod::Pod;

/// The data plane, as the enrolment of a pod needs it.
pub trait Agents: Send + Sync + 'static {
    /// Hands the pod to the newest connection and waits for its ack. From here on every connection's snapshot names the
    /// pod, whether this call succeeds or not.
    fn add<'a>(
        &'a self,
        pod: &'a AgentPod,
        netns: Netns,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), AgentError>>;

    /// Names the pod in snapshots from now on, without telling anybody. `None` when its namespace is not at hand.
    fn adopt(&self, pod: &AgentPod, netns: Option<Netns>);

    /// Tells every connection that the pod is gone, and waits for each to say so. One that does not learns it from its
    /// next snapshot.
    fn del<'a>(&'a self, uid: &'a PodUid) -> BoxFuture<'a, ()>;
}

/// What the data plane is told of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentPod {
    /// Its UID.
    pub uid: PodUid,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// Why the data plane does not serve a pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// Nobody is connected.
    #[error("no agent is connected to the ZDS socket")]
    NotConnected,
    /// It said no.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// It did not answer in time.
    #[error("the agent did not answer in time")]
    Late,
    /// It went away before it answered.
    #[error("the agent disconnected: {0}")]
    Disconnected(String),
    /// More is waiting for it than it may have.
    #[error("the agent is too far behind: {0} requests wait for it")]
    Behind(usize),
}

impl AgentPod {
    /// What the data plane is told of this pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
        }
    }

    fn info(&self) -> WorkloadInfo {
        WorkloadInfo {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }
}
