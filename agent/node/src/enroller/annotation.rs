//! The annotation that reports how far a pod's redirection has come: the seam that the API client implements.

use isthmus_model::PodRef;
use isthmus_rt::BoxFuture;

use crate::pod::{Pod, Redirection};

/// Writes the annotation `ambient.istio.io/redirection` of a pod.
pub trait RedirectionAnnotation: Send + Sync + 'static {
    /// Sets the annotation, or removes it. Success when the pod no longer exists.
    fn set<'a>(
        &'a self,
        pod: &'a Pod,
        redirection: Option<Redirection>,
    ) -> BoxFuture<'a, Result<(), AnnotationError>>;

    /// Writes an Event of the pod that its traffic is not captured. A failure to write it must not affect the pod.
    fn report_not_captured<'a>(&'a self, pod: &'a PodRef, why: String) -> BoxFuture<'a, ()>;
}

/// Why the annotation is not written. Both are worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationError {
    /// The API server refused the patch or could not be reached.
    #[error("annotation ambient.istio.io/redirection: {0} (the node role needs `patch` on `pods/status`)")]
    Api(Box<dyn std::error::Error + Send + Sync>),
    /// The API server did not answer before the deadline.
    #[error("annotation ambient.istio.io/redirection: the API server did not answer in time")]
    TimedOut,
}
