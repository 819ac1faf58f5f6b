//! Monotonic metrics that can be merged and that know whether another handle exists: what expiring families need.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A monotonic metric. Clones share its value.
pub trait Total: EncodeMetric + TypedMetric + Clone + Default + fmt::Debug + Send + Sync + 'static {
    /// A number that increases with every change.
    fn changes(&self) -> u64;
    /// Whether another clone exists, which may still count.
    fn is_held(&self) -> bool;
    /// Adds the value of another one.
    fn absorb(&self, other: &Self);
}

/// A counter.
#[derive(Debug, Clone, Default)]
pub struct Count(Arc<AtomicU64>);

/// Upper bounds of a histogram's buckets, ascending; the `+Inf` bucket is implied.
pub trait Limits: Send + Sync + 'static {
    /// The bounds.
    const LIMITS: &'static [f64];
}

/// A histogram over the buckets of `B`.
pub struct Histogram<B>(Arc<Buckets>, PhantomData<B>);

#[derive(Debug)]
struct Buckets {
    /// Observations per bucket.
    counts: Box<[AtomicU64]>,
    /// The sum as the bits of an `f64`.
    sum: AtomicU64,
}

// === impl Count ===

impl Count {
    /// Counts one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Counts `n`.
    pub fn inc_by(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Total for Count {
    fn changes(&self) -> u64 {
        self.get()
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn absorb(&self, other: &Self) {
        self.inc_by(other.get());
    }
}

impl EncodeMetric for Count {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        ConstCounter::new(self.get()).encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Count {
    const TYPE: MetricType = MetricType::Counter;
}

// === impl Histogram ===

impl<B> Clone for Histogram<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), PhantomData)
    }
}

impl<B: Limits> Default for Histogram<B> {
    fn default() -> Self {
        let counts = (0..=B::LIMITS.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Buckets { counts, sum: AtomicU64::new(0.0_f64.to_bits()) }), PhantomData)
    }
}

impl<B> fmt::Debug for Histogram<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<B: Limits> Histogram<B> {
    /// Counts one observation.
    pub fn observe(&self, value: f64) {
        let bucket = B::LIMITS.partition_point(|limit| *limit < value);
        self.0.add(value, std::iter::once((bucket, 1)));
    }
}

impl Buckets {
    fn add(&self, sum: f64, counts: impl Iterator<Item = (usize, u64)>) {
        for (bucket, n) in counts {
            if let Some(count) = self.counts.get(bucket) {
                count.fetch_add(n, Ordering::Relaxed);
            }
        }
        let more = |bits| Some((f64::from_bits(bits) + sum).to_bits());
        // Cannot fail: the closure always returns a value.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed))
    }

    fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

impl<B: Limits> Total for Histogram<B> {
    fn changes(&self) -> u64 {
        self.0.counts().sum()
    }

    fn is_held(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn absorb(&self, other: &Self) {
        self.0.add(other.0.sum(), other.0.counts().enumerate());
    }
}

impl<B: Limits> EncodeMetric for Histogram<B> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let limits = B::LIMITS.iter().copied().chain(std::iter::once(f64::INFINITY));
        let buckets: Vec<(f64, u64)> = limits.zip(self.0.counts()).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(self.0.sum(), count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl<B> TypedMetric for Histogram<B> {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;

    struct Seconds;

    impl Limits for Seconds {
        const LIMITS: &'static [f64] = &[0.1, 1.0];
    }

    #[test]
    fn a_histogram_encodes_its_buckets_and_absorbs_another() {
        let (all, other) = (Histogram::<Seconds>::default(), Histogram::<Seconds>::default());
        [0.05, 0.1, 0.5].into_iter().for_each(|value| all.observe(value));
        other.observe(7.0);
        all.absorb(&other);
        let registry = Registry::default();
        registry.register("took_seconds", "Took", all.clone());
        let text = registry.encode().unwrap();
        for line in [
            "took_seconds_bucket{le=\"0.1\"} 2",
            "took_seconds_bucket{le=\"1.0\"} 3",
            "took_seconds_bucket{le=\"+Inf\"} 4",
            "took_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!((all.0.sum() - 7.65).abs() < 1e-9);
        assert_eq!(all.changes(), 4);
    }

    #[test]
    fn it_is_held_while_there_is_another_clone() {
        let count = Count::default();
        let other = count.clone();
        other.inc();
        assert!(count.is_held());
        drop(other);
        assert!(!count.is_held() && count.get() == 1);
    }
}
