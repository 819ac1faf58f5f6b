//! `/metrics` and `/stats/prometheus`. Encoding thousands of series takes a while, so it is done on a thread of its own,
//! one scrape after the other.

use http::HeaderValue;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName, VARY};
use http::request::Parts;
use isthmus_rt::BoxFuture;
use isthmus_rt::metrics::Metrics;
use isthmus_rt::task::compute;
use tokio::sync::Mutex;

use super::encoding::Encoding;
use super::{PLAIN, Reply, Routes, reply};

const OPENMETRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

/// The endpoint over a registry.
#[derive(Debug)]
pub struct Stats {
    registry: Metrics,
    turn: Mutex<()>,
}

impl Stats {
    /// Over a registry.
    #[must_use]
    pub fn new(registry: Metrics) -> Self {
        Self { registry, turn: Mutex::new(()) }
    }

    async fn answer(&self, request: Parts) -> Reply {
        if !matches!(request.uri.path(), "/metrics" | "/stats/prometheus") {
            return reply(404, PLAIN, "");
        }
        let header = |name: HeaderName| {
            let values = request.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
            values.collect::<Vec<_>>().join(",")
        };
        let openmetrics = header(ACCEPT).contains("application/openmetrics-text");
        let kind = if openmetrics { OPENMETRICS } else { PLAIN };
        let encoding = Encoding::of(&header(ACCEPT_ENCODING));
        let registry = self.registry.clone();
        let turn = self.turn.lock().await;
        let encoded = compute("metrics", move || encoding.encode(|out| registry.encode_to(out))).await;
        drop(turn);
        let mut answer = match encoded {
            Some(Ok(text)) => reply(200, kind, text),
            Some(Err(error)) => return reply(500, PLAIN, format!("metrics: {error}\n")),
            None => return reply(500, PLAIN, "metrics: the encoder panicked\n"),
        };
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if let Some(name) = encoding.name() {
            answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(name));
        }
        answer
    }
}

impl Routes for Stats {
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply> {
        Box::pin(self.answer(request))
    }
}
