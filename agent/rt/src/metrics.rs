//! The metric registry. Families are declared where they are emitted; the root registers them here and admin encodes.

pub mod family;
pub mod process;
pub mod runtime;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{Metric, Registry};

pub use family::Family;

/// The process' registry. Clones share it. Its lock is taken to declare and to encode, never to count.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// Registers one family under its full name; counters must be given without the `_total` suffix, which the
    /// encoder adds.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).register(name, help, metric);
    }

    /// Registers families whose values are read when they are asked for.
    pub fn collect(&self, collector: impl Collector) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).register_collector(Box::new(collector));
    }

    /// The OpenMetrics text of every family.
    ///
    /// # Errors
    /// When a metric cannot be formatted.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.encode_to(&mut text)?;
        Ok(text)
    }

    /// Writes the OpenMetrics text of every family. With many series this computes for a while.
    ///
    /// # Errors
    /// When a metric cannot be formatted or written.
    pub fn encode_to(&self, out: &mut impl fmt::Write) -> Result<(), fmt::Error> {
        encode(out, &self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
