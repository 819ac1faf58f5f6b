//! The three HTTP endpoints: admin (loopback), metrics and readiness. One small HTTP/1.1 server, bounded in header size
//! and time; it lives on the control runtime, so a slow reader is never felt by a connection.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use isthmus_rt::drain;
use isthmus_rt::metrics::Metrics;
use isthmus_rt::ready::Readiness;
use isthmus_rt::task::Tasks;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::Source;
use crate::dump::Filter;
use crate::logging::Logging;

type Reply = Response<Full<Bytes>>;

/// A set of paths.
pub trait Routes: Send + Sync + 'static {
    /// Answers one request.
    fn route(&self, request: &Request<Incoming>) -> Reply;
}

/// `/`, `/config_dump`, `/logging`, `/quitquitquit` on loopback.
pub struct Admin {
    /// What is dumped.
    pub source: Arc<dyn Source>,
    /// The log filter.
    pub logging: Logging,
    /// Told when somebody asks the process to end.
    pub quit: mpsc::Sender<()>,
}

/// `/metrics` and `/stats/prometheus`.
#[derive(Debug)]
pub struct Stats(pub Metrics);

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
            let service = service_fn(move |request| {
                let reply = routes.route(&request);
                async move { Ok::<_, Infallible>(reply) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(2)).max_buf_size(8192);
            if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
    }
    // What is being answered gets a moment; an idle keep-alive connection does not hold the process.
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
}

impl Routes for Admin {
    fn route(&self, request: &Request<Incoming>) -> Reply {
        let post = request.method() == Method::POST;
        let query = request.uri().query().unwrap_or_default();
        match request.uri().path() {
            "/" => reply(200, "text/html; charset=utf-8", INDEX),
            "/config_dump" => self.dump(query),
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
}

impl Admin {
    fn dump(&self, query: &str) -> Reply {
        let dump = crate::dump::dump(self.source.as_ref(), &Filter::from_query(query));
        match serde_json::to_vec_pretty(&dump) {
            Ok(text) => reply(200, "application/json", text),
            Err(error) => reply(500, PLAIN, format!("config dump: {error}\n")),
        }
    }
}

impl Routes for Stats {
    fn route(&self, request: &Request<Incoming>) -> Reply {
        if !matches!(request.uri().path(), "/metrics" | "/stats/prometheus") {
            return reply(404, PLAIN, "");
        }
        let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let kind = if accept.contains("application/openmetrics-text") {
            "application/openmetrics-text;charset=utf-8;version=1.0.0"
        } else {
            PLAIN
        };
        match self.0.encode() {
            Ok(text) => reply(200, kind, text),
            Err(error) => reply(500, PLAIN, format!("metrics: {error}\n")),
        }
    }
}

impl Routes for Ready {
    fn route(&self, request: &Request<Incoming>) -> Reply {
        match request.uri().path() {
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

const PLAIN: &str = "text/plain; charset=utf-8";

const INDEX: &str = "<!DOCTYPE html><html lang=\"en\"><head><title>isthmus</title></head><body><h1>isthmus</h1><ul>\
<li><a href=\"config_dump\">config_dump</a>: what the agent holds; ?kind=workloads&amp;namespace=…&amp;name=… narrows it</li>\
<li>logging: POST; ?level=scope:level changes the log filter, ?reset restores it</li>\
<li>quitquitquit: POST; drains and ends the process</li></ul></body></html>\n";

fn reply(status: u16, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() =
        http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    reply
}

#[cfg(test)]
mod tests;
