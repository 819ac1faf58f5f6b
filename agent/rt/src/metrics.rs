//! The metric registry. Families are declared where they are counted, registered here, and encoded by the admin crate.

pub mod expiring;
pub mod family;
mod hashed;
pub mod process;
pub mod runtime;
mod shares;
pub mod total;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::{self, Metric};

use expiring::{Bounded, Bounds, Coarse, Pair};

pub use expiring::Expiring;
pub use family::Family;
pub use hashed::{Hashed, LabelHash};
pub use total::{Count, Histogram, Total};

/// The registry of the process. Clones share it. Its lock is taken to register and to encode, never to count.
#[derive(Debug, Clone, Default)]
pub struct Registry(Arc<Families>);

#[derive(Debug, Default)]
struct Families {
    registry: Mutex<registry::Registry>,
    /// Families with a limit of series.
    bounded: Bounds,
}

impl Registry {
    /// Registers one family under its full name; counters must be given without the `_total` suffix, which the
    /// encoder adds.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry().register(name, help, metric);
    }

    /// Registers a collector, whose values are read at each scrape.
    pub fn collect(&self, collector: impl Collector) {
        self.registry().register_collector(Box::new(collector));
    }

    /// Registers a family whose series expire, together with the family of their sums: `istio_…` is accompanied by
    /// `isthmus_expired_…`. Size, limit and expired series are in `isthmus_metric_series…`.
    pub fn register_expiring<L: Coarse, M: Total>(
        &self,
        name: &'static str,
        help: &'static str,
        family: &Expiring<L, M>,
    ) {
        self.collect(Pair::new(name, help, family.clone()));
        if self.0.bounded.add(Bounded::new(name, family.clone())) {
            self.collect(self.0.bounded.clone());
        }
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

    /// Writes the OpenMetrics text of every family. Takes a while with many series.
    ///
    /// # Errors
    /// When a metric cannot be formatted or written.
    pub fn encode_to(&self, out: &mut impl fmt::Write) -> Result<(), fmt::Error> {
        encode(out, &self.registry())
    }

    fn registry(&self) -> MutexGuard<'_, registry::Registry> {
        self.0.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
