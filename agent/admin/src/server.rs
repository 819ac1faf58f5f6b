//! The three HTTP endpoints: admin (loopback), metrics and readiness. One small HTTP/1.1 server, bounded in header size
//! and time; it lives on the control runtime, so a slow reader is never felt by a connection.

mod body;
mod encoding;
mod index;
mod origin;
mod stalled;
mod stats;

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
use self::encoding::{Encoding, Stream};
use self::stalled::Stalled;
pub use self::stats::Stats;
use crate::Source;
use crate::dump::Filter;
use crate::logging::Logging;

/// What is answered.
pub type Reply = Response<Body>;

/// How long a reader may take nothing of what it asked for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Dumps that are written at the same time, each of which holds a picture of the mesh; others wait for their turn.
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
    let tasks = Tasks::new("http");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.graceful() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: let others give some back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let routes = Arc::clone(&routes);
        tasks.spawn("http connection", async move {
            let service = service_fn(|request: http::Request<_>| {
                let reply = routes.route(request.into_parts().0);
                async move { Ok::<_, Infallible>(reply.await) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(2)).max_buf_size(8192);
            let io = TokioIo::new(Stalled::new(stream, PATIENCE));
            if let Err(error) = builder.serve_connection(io, service).await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
    // What is being answered gets a moment; an idle keep-alive connection does not hold the process.
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
}

// === impl Admin ===

impl Admin {
    /// Over what is dumped and the log filter; `quit` is told when somebody asks the process to end.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, logging: Logging, quit: mpsc::Sender<()>, ports: AgentPorts) -> Self {
        Self { source, logging, quit, ports, dumps: Arc::new(Semaphore::new(DUMPS)) }
    }

    fn answer(&self, request: &Parts) -> Reply {
        let post = request.method == Method::POST;
        if post && origin::is_foreign(request) {
            return reply(403, PLAIN, "a page of another site may not do this\n");
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
                // Asking twice is asking once.
                let _ = self.quit.try_send(());
                reply(200, PLAIN, "shutdown now\n")
            }
            "/quitquitquit" => reply(405, PLAIN, ""),
            _ => reply(404, PLAIN, ""),
        }
    }

    fn dump(&self, query: &str, encoding: Encoding) -> Reply {
        let (source, filter) = (Arc::clone(&self.source), Filter::from_query(query));
        let turns = Arc::clone(&self.dumps);
        let body = Body::generated(move |out| async move {
            // It is never closed, so there is always a turn to come.
            let _turn = turns.acquire_owned().await;
            match Stream::new(encoding) {
                None => crate::dump::write(source, filter, out).await,
                Some(stream) => {
                    let (text, from) = mpsc::channel(1);
                    tokio::join!(crate::dump::write(source, filter, text), compress(from, stream, out));
                }
            }
        });
        let mut reply = reply(200, "application/json", body);
        encoded(&mut reply, encoding);
        reply.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
        reply
    }
}

/// Passes chunks on, compressed. When a chunk cannot be taken the answer ends there.
async fn compress(mut from: mpsc::Receiver<Bytes>, mut stream: Stream, out: mpsc::Sender<Bytes>) {
    while let Some(chunk) = from.recv().await {
        match stream.push(&chunk) {
            Ok(ready) if ready.is_empty() => {}
            // When nobody reads any more this is dropped.
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
        match request.uri.path() {
            "/healthz/ready" | "/readyz" if request.method != Method::GET => return reply(405, PLAIN, ""),
            "/healthz/ready" | "/readyz" => {}
            "/healthz" => return reply(200, PLAIN, "alive\n"),
            _ => return reply(404, PLAIN, ""),
        }
        let pending = self.0.pending();
        if pending.is_empty() {
            reply(200, PLAIN, "ready\n")
        } else {
            reply(500, PLAIN, format!("not ready, pending: {}\n", pending.join(", ")))
        }
    }
}

impl Routes for Ready {
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply> {
        Box::pin(std::future::ready(self.answer(&request)))
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

/// All values of a header, as one list.
fn header(request: &Parts, name: HeaderName) -> String {
    let values = request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

/// Says how an answer is compressed.
fn encoded(reply: &mut Reply, encoding: Encoding) {
    if let Some(name) = encoding.name() {
        reply.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
}

/// An answer of a known kind; a status that is none is our mistake and shows as such.
fn reply(status: u16, kind: &'static str, body: impl Into<Body>) -> Reply {
    let mut reply = Response::new(body.into());
    *reply.status_mut() =
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

#[cfg(test)]
mod tests;
