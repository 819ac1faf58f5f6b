//! The socket on which the CNI plugin asks for a pod: `POST /cmdadd`, answered when the pod is captured. Owns HTTP; what
//! it takes to capture a pod is its handler's.

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
use isthmus_proto::cni::AddEvent;
use isthmus_rt::BoxFuture;
use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use tokio::net::{UnixListener, UnixStream};

use crate::metrics::{Metrics, ResponseCode};
use crate::sockets;

/// Name of the socket in the run directory.
const SOCKET: &str = "pluginevent.sock";
/// An event is a few hundred bytes.
const LARGEST: usize = 64 << 10;
/// Longest wait for a request, once connected.
const PATIENCE: Duration = Duration::from_secs(5);
/// Wait after a failed accept: running out of descriptors must not become a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// What captures a pod. A dropped future means that nobody waits for the answer any more.
pub trait Capture: Send + Sync + 'static {
    /// Captures the pod, or says why not.
    fn capture(&self, event: AddEvent) -> BoxFuture<'_, Result<(), String>>;
}

/// Opens the socket, with mode 0600, in place of a stale one.
///
/// # Errors
/// When the folder cannot be made or the path cannot be bound.
pub(crate) fn bind(run_dir: &Path) -> io::Result<UnixListener> {
    sockets::private(&run_dir.join(SOCKET), |path| UnixListener::bind(path))
}

/// Serves the plugin until the drain begins; requests that are being worked on are still answered.
pub(crate) async fn serve(
    listener: UnixListener,
    handler: Arc<dyn Capture>,
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
                tracing::warn!(error = %error, "no plugin connection accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    tokio::select! {
        () = tasks.wait() => {}
        () = drain.forced() => {}
    }
}

async fn connection(stream: UnixStream, handler: Arc<dyn Capture>, metrics: Arc<Metrics>) {
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
    // One request per connection, so that a stopping node role need not wait for idle ones.
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        tracing::debug!(error = %error, "plugin connection ended early");
    }
}

async fn answer(request: Request<Incoming>, handler: &dyn Capture) -> (StatusCode, String) {
    if request.uri().path() != "/cmdadd" {
        return (StatusCode::NOT_FOUND, "there is only /cmdadd\n".to_owned());
    }
    if request.method() != Method::POST {
        return (StatusCode::METHOD_NOT_ALLOWED, "/cmdadd takes POST\n".to_owned());
    }
    let body = Limited::new(request.into_body(), LARGEST).collect();
    let body = match tokio::time::timeout(PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return (StatusCode::BAD_REQUEST, format!("body: {error}\n")),
        Err(_) => return (StatusCode::BAD_REQUEST, format!("body: not here within {PATIENCE:?}\n")),
    };
    let event: AddEvent = match serde_json::from_slice(&body) {
        Ok(event) => event,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("body: {error}\n")),
    };
    let pod = format!("{}/{}", event.pod_namespace, event.pod_name);
    match handler.capture(event).await {
        Ok(()) => (StatusCode::OK, String::new()),
        Err(reason) => {
            tracing::warn!(pod = %pod, reason = %reason, "the pod's creation fails");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n"))
        }
    }
}

#[cfg(test)]
mod tests;
