//! What serves a pod: the trait that the composition root implements.

use isthmus_model::{Namespace, PodUid, ServiceAccount, Text};
use isthmus_rt::BoxFuture;
use isthmus_sys::netns::Netns;

/// Who a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// The pod's name.
    pub name: Text,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
}

/// A pod to be served.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its Kubernetes UID.
    pub uid: PodUid,
    /// Who it is.
    pub info: PodInfo,
    /// Its network namespace.
    pub netns: Netns,
}

/// Why a pod cannot be served now; goes to the node role, which fails the pod's creation with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub String);

/// How a pod's service ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Connections may finish.
    Drain,
    /// Connections are cut.
    Now,
}

/// Serves pods.
pub trait PodRuntime: Send + Sync {
    /// Makes the pod's listeners; returns when they listen. The node role waits for it, 5 s at most.
    fn start(&self, pod: Pod) -> BoxFuture<'_, Result<(), StartError>>;

    /// Ends what was started for the pod. With [`Stop::Now`] returns when its listeners are gone; with [`Stop::Drain`] at
    /// once, for the next request waits: nothing new is taken, and what is open ends by and by.
    fn stop<'a>(&'a self, uid: &'a PodUid, how: Stop) -> BoxFuture<'a, ()>;
}
