//! The HTTP server for the CNI plugin: `POST /cmdadd` on a Unix socket, answered when the pod is enrolled. It owns
//! HTTP; how a pod is enrolled is behind [`AddHandler`].

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isthmus_model::PodRef;
use isthmus_proto::cni::AddEvent;
use isthmus_proto::enroll::Reason;
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use isthmus_sys::private_socket;
use tokio::net::{UnixListener, UnixStream};

use crate::enroller::error::EnrolError;
use crate::metrics::{Metrics, ResponseCode};

/// Name of the socket in the run directory.
const SOCKET: &str = "pluginevent.sock";
/// Longest body. An event is a few hundred bytes.
const MAX_BODY: usize = 64 << 10;
/// Deadline of a connection's request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept: when descriptors run out, accept fails at once and the loop would spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Enrols the pod of an event. The future is dropped when the plugin disconnects.
pub trait AddHandler: Send + Sync + 'static {
    /// Enrols the pod.
    fn add(&self, event: AddEvent) -> BoxFuture<'_, Result<(), AddError>>;
}

/// Why a pod is not enrolled at its creation. The kubelet reports the text in an event of the pod, deletes the sandbox
/// and retries.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The node role drains; its successor serves the retry.
    #[error("the node role is stopping")]
    Stopping,
    /// The request was not finished before the plugin's deadline.
    #[error("the node role is starting or overloaded, see its log on this node")]
    Overloaded,
    /// The API server's watch has not reported a pod of this name on this node.
    #[error("pod {namespace}/{name} is not known on this node")]
    UnknownPod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// Plugin and node role disagree about the pod: its labels changed, or the two have different settings.
    #[error("pod {namespace}/{name} does not belong to the mesh: {reason}")]
    NotSelected {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The rule that excludes it.
        reason: Reason,
    },
    /// The pod was deleted meanwhile.
    #[error("pod {namespace}/{name} is deleted")]
    Deleted {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
    },
    /// A step of the enrolment failed and was rolled back.
    #[error("pod {pod}: {error}")]
    Enrol {
        /// The pod.
        pod: PodRef,
        /// The step that failed.
        error: EnrolError,
    },
}

/// Binds the socket with mode 0600, replacing a stale one.
///
/// # Errors
/// When the folder cannot be made or the path cannot be bound.
pub(crate) fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    private_socket::bind(&run_dir.join(SOCKET), |path| UnixListener::bind(path))
}

/// Serves the plugin until the drain begins; requests in progress are still answered.
pub(crate) async fn serve(
    listener: UnixListener,
    handler: Arc<dyn AddHandler>,
    metrics: Arc<Metrics>,
    drain: Watch,
) {
    let tasks = Tasks::new("plugin events");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.graceful() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (handler, metrics) = (Arc::clone(&handler), Arc::clone(&metrics));
                tasks.spawn("plugin event", connection(stream, handler, metrics));
            }
            Err(error) => {
                tracing::warn!(%error, "connection of the CNI plugin not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    tokio::select! {
        () = tasks.wait() => {}
        () = drain.forced() => {}
    }
}

async fn connection(stream: UnixStream, handler: Arc<dyn AddHandler>, metrics: Arc<Metrics>) {
    let service = service_fn(|request| {
        let (handler, metrics) = (Arc::clone(&handler), Arc::clone(&metrics));
        async move {
            let (status, text) = answer(request, &*handler).await;
            metrics.plugin_requests.get_or_create(&ResponseCode { response_code: status.as_u16() }).inc();
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }
    });
    // Without keep-alive, so that a draining node role does not wait for idle connections.
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        tracing::debug!(%error, "connection of the CNI plugin failed");
    }
}

async fn answer(request: Request<Incoming>, handler: &dyn AddHandler) -> (StatusCode, String) {
    if request.uri().path() != "/cmdadd" {
        return (StatusCode::NOT_FOUND, "not found, the only path is /cmdadd\n".to_owned());
    }
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "/cmdadd takes POST\n".to_owned());
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(REQUEST_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return (StatusCode::BAD_REQUEST, format!("body: {error}\n")),
        Err(_) => {
            return (StatusCode::BAD_REQUEST, format!("body: not received within {REQUEST_TIMEOUT:?}\n"));
        }
    };
    let event: AddEvent = match serde_json::from_slice(&body) {
        Ok(event) => event,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("body: {error}\n")),
    };
    let pod = format!("{}/{}", event.pod_namespace, event.pod_name);
    match handler.add(event).await {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(reason) => {
            tracing::warn!(%pod, error = %reason, "pod not enrolled, its creation fails and is retried by the kubelet");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n"))
        }
    }
}

#[cfg(test)]
mod tests;
