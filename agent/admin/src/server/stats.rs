//! `/metrics` and `/stats/prometheus`. Encoding thousands of series takes a while, so it runs on the blocking pool, one
//! scrape at a time.

use http::HeaderValue;
use http::header::{ACCEPT, ACCEPT_ENCODING, VARY};
use http::request::Parts;
use isthmus_rt::BoxFuture;
use isthmus_rt::metrics::Registry;
use isthmus_rt::task::compute;
use tokio::sync::Mutex;

use super::encoding::Encoding;
use super::{PLAIN, Reply, Routes, encoded, header, reply};

const OPENMETRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

/// The metrics endpoint.
#[derive(Debug)]
pub struct Stats {
    registry: Registry,
    scrape: Mutex<()>,
}

impl Stats {
    /// Over a registry.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry, scrape: Mutex::new(()) }
    }

    async fn answer(&self, request: Parts) -> Reply {
        if !matches!(request.uri.path(), "/metrics" | "/stats/prometheus") {
            return reply(404, PLAIN, "");
        }
        let openmetrics = header(&request, ACCEPT).contains("application/openmetrics-text");
        let kind = if openmetrics { OPENMETRICS } else { PLAIN };
        let encoding = Encoding::of(&header(&request, ACCEPT_ENCODING));
        let registry = self.registry.clone();
        let scrape = self.scrape.lock().await;
        let text = compute("metrics", move || encoding.encode(|out| registry.encode_to(out))).await;
        drop(scrape);
        let mut answer = match text {
            Some(Ok(text)) => reply(200, kind, text),
            Some(Err(error)) => return reply(500, PLAIN, format!("metrics: {error}\n")),
            None => return reply(500, PLAIN, "metrics: the encoder panicked\n"),
        };
        encoded(&mut answer, encoding);
        answer.headers_mut().insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        answer
    }
}

impl Routes for Stats {
    fn route(&self, request: Parts) -> BoxFuture<'_, Reply> {
        Box::pin(self.answer(request))
    }
}
