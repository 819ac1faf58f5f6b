//! `/metrics` and `/stats/prometheus`. Encoding thousands of series takes a while, so it runs on the blocking pool, one
//! scrape at a time; scrapes at the same time share its text.

use http::HeaderValue;
use http::header::{ACCEPT, ACCEPT_ENCODING, VARY};
use http::request::Parts;
use isthmus_rt::BoxFuture;
use isthmus_rt::metrics::Registry;
use isthmus_rt::task::compute;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::body::Body;
use super::encoding::Encoding;
use super::snapshots::{Kind, Snapshots};
use super::{PLAIN, Reply, Routes, encoded, header, reply};

const OPENMETRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

/// The metrics endpoint.
#[derive(Debug)]
pub struct Stats {
    registry: Registry,
    texts: Mutex<Snapshots>,
}

impl Stats {
    /// Over a registry.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry, texts: Mutex::default() }
    }

    async fn answer(&self, request: Parts) -> Reply {
        if !matches!(request.uri.path(), "/metrics" | "/stats/prometheus") {
            return reply(404, PLAIN, "");
        }
        let openmetrics = header(&request, ACCEPT).contains("application/openmetrics-text");
        let kind = if openmetrics { OPENMETRICS } else { PLAIN };
        let encoding = Encoding::of(&header(&request, ACCEPT_ENCODING));
        let body = match self.text(Kind { encoding, openmetrics }).await {
            Ok(body) => body,
            Err(error) => return reply(500, PLAIN, error),
        };
        let mut answer = reply(200, kind, body);
        encoded(&mut answer, encoding);
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        answer
    }

    /// Bytes of the texts that are being read.
    #[cfg(test)]
    pub(super) async fn bytes(&self) -> usize {
        self.texts.lock().await.bytes()
    }

    /// A text that is not older than the request.
    async fn text(&self, kind: Kind) -> Result<Body, String> {
        let asked = Instant::now();
        let mut texts = self.texts.lock().await;
        if let Some(shared) = texts.since(kind, asked) {
            return Ok(Body::shared(shared));
        }
        let began = Instant::now();
        let registry = self.registry.clone();
        let text = compute("metrics", move || kind.encoding.encode(|out| registry.encode_to(out))).await;
        match text {
            Some(Ok(text)) => Ok(Body::shared(texts.add(kind, began, text.into()))),
            Some(Err(error)) => Err(format!("metrics: {error}\n")),
            None => Err("metrics: the encoder panicked\n".to_owned()),
        }
    }
}

impl Routes for Stats {
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply> {
        Box::pin(self.answer(request))
    }
}
