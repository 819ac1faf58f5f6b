//! The three HTTP endpoints: admin (loopback), metrics and readiness. One small HTTP/1.1 server, bounded in header size
//! and time; it lives on the control runtime, so a slow reader is never felt by a connection.

mod body;
mod connections;
mod encoding;
mod index;
mod origin;
mod snapshots;
mod stats;
mod write_timeout;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use http::request::Parts;
use http::{HeaderValue, Method, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isthmus_model::AgentPorts;
use isthmus_rt::BoxFuture;
use isthmus_rt::drain;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};

use self::body::Body;
use self::connections::Connections;
use self::encoding::{Encoding, Stream};
pub use self::stats::Stats;
use self::write_timeout::WriteTimeout;
use crate::Source;
use crate::dump::Filter;
use crate::logging::Logging;

/// A response.
pub type Reply = Response<Body>;

/// Timeout of a client that reads nothing of its response.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Concurrent dumps, each of which holds a snapshot; further ones wait.
const DUMPS: usize = 2;

/// A set of paths.
pub trait Routes: Send + Sync + 'static {
    /// Answers one request; none of them has a body that matters.
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply>;
}

/// `/`, `/config_dump`, `/logging`, `/quitquitquit` on loopback.
pub struct Admin {
    source: Arc<dyn Source>,
    logging: Logging,
    quit: mpsc::Sender<()>,
    ports: AgentPorts,
    dumps: Arc<Semaphore>,
}

/// `/healthz/ready`, and istio-cni's `/readyz` (ready or not) and `/healthz` (alive).
#[derive(Debug)]
pub struct Ready(pub Readiness);

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("logging", &self.logging).finish_non_exhaustive()
    }
}

/// Serves until the drain begins; open requests may finish.
pub async fn serve(listener: TcpListener, routes: Arc<dyn Routes>, drain: drain::Watch) {
    let (tasks, mut connections) = (Tasks::new("http"), Connections::default());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.graceful() => break,
        };
        let Ok((stream, peer)) = accepted else {
            // Probably out of file descriptors: wait until some are closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (routes, closed) = (Arc::clone(&routes), connections.add(peer.ip()));
        tasks.spawn("http connection", async move {
            let service = service_fn(|request: http::Request<_>| {
                let reply = routes.route(request.into_parts().0);
                async move { Ok::<_, Infallible>(reply.await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(2)).max_buf_size(8192);
            let io = TokioIo::new(WriteTimeout::new(stream, READ_TIMEOUT));
            let served = tokio::select! {
                served = builder.serve_connection(io, service) => served,
                _ = closed => return,
            };
            if let Err(error) = served {
                tracing::debug!(%error, "HTTP connection of the admin, metrics or readiness endpoint failed");
            }
        });
    }
    // Requests in flight may finish; idle keep-alive connections do not hold up the process.
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
}

// === impl Admin ===

impl Admin {
    /// The admin interface over a source and the log. `/quitquitquit` sends on `quit`; `ports` are shown on the index page.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, logging: Logging, quit: mpsc::Sender<()>, ports: AgentPorts) -> Self {
        Self { source, logging, quit, ports, dumps: Arc::new(Semaphore::new(DUMPS)) }
    }

    fn answer(&self, request: &Parts) -> Reply {
        let post = request.method == Method::POST;
        if origin::is_misdirected(request) || post && origin::is_foreign(request) {
            return reply(
                403,
                PLAIN,
                "cross-site requests are refused: this page may only be used from localhost or by address\n",
            );
        }
        let query = request.uri.query().unwrap_or_default();
        match request.uri.path() {
            "/" => reply(200, "text/html; charset=utf-8", index::page(&self.logging.current(), self.ports)),
            "/config_dump" => self.dump(query, Encoding::of(&header(request, ACCEPT_ENCODING))),
            "/logging" => {
                let answer = self.logging.handle(post, query);
                reply(answer.status, PLAIN, answer.body)
            }
            "/quitquitquit" if post => {
                // The channel is full after the first request; more have no effect.
                let _ = self.quit.try_send(());
                reply(200, PLAIN, "shutdown now\n")
            }
            "/quitquitquit" => reply(405, PLAIN, ""),
            _ => reply(404, PLAIN, ""),
        }
    }

    fn dump(&self, query: &str, encoding: Encoding) -> Reply {
        let (source, filter) = (Arc::clone(&self.source), Filter::from_query(query));
        let permits = Arc::clone(&self.dumps);
        let body = Body::generated(move |out| async move {
            // Cannot fail: the semaphore is never closed.
            let _permit = permits.acquire_owned().await;
            if encoding == Encoding::Identity {
                return crate::dump::write(source, filter, out).await;
            }
            let Ok(stream) = Stream::new(encoding) else { return };
            let (text, from) = mpsc::channel(1);
            tokio::join!(crate::dump::write(source, filter, text), compress(from, stream, out));
        });
        let mut reply = reply(200, "application/json", body);
        encoded(&mut reply, encoding);
        reply.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        reply
    }
}

/// Compresses chunks. The response ends at a chunk that cannot be compressed.
async fn compress(mut from: mpsc::Receiver<Bytes>, mut stream: Stream, out: mpsc::Sender<Bytes>) {
    while let Some(chunk) = from.recv().await {
        match stream.push(&chunk) {
            Ok(ready) if ready.is_empty() => {}
            // When the reader is gone, this future is dropped.
            Ok(ready) => drop(out.send(ready.into()).await),
            Err(_) => return,
        }
    }
    if let Ok(rest) = stream.finish() {
        drop(out.send(rest.into()).await);
    }
}

impl Routes for Admin {
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply> {
        Box::pin(std::future::ready(self.answer(&request)))
    }
}

// === impl Ready ===

impl Ready {
    fn answer(&self, request: &Parts) -> Reply {
        // What ztunnel and istio-cni answer when they are not ready.
        let not_ready = match request.uri.path() {
            "/healthz/ready" | "/readyz" if request.method != Method::GET => return reply(405, PLAIN, ""),
            "/healthz/ready" => 500,
            "/readyz" => 503,
            "/healthz" => return reply(200, PLAIN, "alive\n"),
            _ => return reply(404, PLAIN, ""),
        };
        let pending = self.0.pending();
        if pending.is_empty() {
            reply(200, PLAIN, "ready\n")
        } else {
            reply(not_ready, PLAIN, format!("not ready, pending: {}\n", pending.join(", ")))
        }
    }
}

impl Routes for Ready {
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply> {
        Box::pin(std::future::ready(self.answer(&request)))
    }
}

/// Other paths, and the status of a role as JSON at `/status`.
pub struct WithStatus<R> {
    /// The other paths.
    pub inner: R,
    /// Asked at each request.
    pub status: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
}

impl<R: Routes> Routes for WithStatus<R> {
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply> {
        if request.uri.path() != "/status" {
            return self.inner.route(request);
        }
        let answer = match request.method {
            Method::GET => reply(200, "application/json", (self.status)().to_string()),
            _ => reply(405, PLAIN, ""),
        };
        Box::pin(std::future::ready(answer))
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// All values of a header, joined by commas.
fn header(request: &Parts, name: HeaderName) -> String {
    let values = request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

/// Sets `Content-Encoding`.
fn encoded(reply: &mut Reply, encoding: Encoding) {
    if let Some(name) = encoding.name() {
        reply.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
}

/// A response with a content type. An invalid status is a bug and becomes 500.
fn reply(status: u16, kind: &'static str, body: impl Into<Body>) -> Reply {
    let mut reply = Response::new(body.into());
    *reply.status_mut() =
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

#[cfg(test)]
mod tests;
