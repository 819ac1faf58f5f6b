//! Metric families whose series expire. A series whose labels name a removed object is dropped once it has not changed for
//! [`IDLE`] and has no other handle, and its value is added to a second family with coarse labels. So memory is bounded and
//! the sum over both families never decreases. A series that returns starts at 0.
//!
//! The bound holds even when new labels appear faster than series expire: above [`LIMIT`] no series is created, and new
//! labels are counted under their coarse form. Labels that say whose they are share the limit out: a source may have at
//! most half as many series as are free, so that one which makes up labels never takes the room of the others.

use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::Instant;

use super::family::Family;
use super::hashed::Hashed;
use super::shares::Shares;
use super::total::{Count, Total};

/// Minimum age of the last change of an expired series.
pub const IDLE: Duration = Duration::from_secs(15 * 60);
/// Interval of sweeps.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Default limit of the series of one family.
pub const LIMIT: usize = 10_000;

/// Bounds of label types.
pub trait Labels: EncodeLabelSet + Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static {}
impl<L: EncodeLabelSet + Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static> Labels for L {}

/// Labels with a coarse form of low cardinality.
pub trait Coarse: Labels {
    /// The coarse form.
    type Kept: Labels;

    /// The coarse form of these labels.
    fn coarse(&self) -> Self::Kept;

    /// Whose share of the limit a series of these labels takes, as a hash; `None` where the number of values is bounded
    /// by the mesh itself.
    fn source(&self) -> Option<u64> {
        None
    }
}

/// A family whose series expire. Clones share it.
pub struct Expiring<L: Coarse, M>(Arc<Families<L, M>>);

struct Families<L: Coarse, M> {
    live: Family<L, M>,
    kept: Family<L::Kept, M>,
    expired: Count,
    limit: usize,
    shares: Shares,
    /// Held while both families are encoded and while series move between them, so that no value is encoded twice or not at
    /// all. Counting does not take it.
    encoding: Mutex<()>,
}

// === impl Expiring ===

impl<L: Coarse, M: Total> Default for Expiring<L, M> {
    fn default() -> Self {
        Self::with_limit(LIMIT)
    }
}

impl<L: Coarse, M> Clone for Expiring<L, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Coarse, M> fmt::Debug for Expiring<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expiring").field("live", &self.0.live).finish_non_exhaustive()
    }
}

impl<L: Coarse, M: Total> Expiring<L, M> {
    /// A family of at most `limit` series.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self(Arc::new(Families {
            live: Family::default(),
            kept: Family::default(),
            expired: Count::default(),
            limit,
            shares: Shares::default(),
            encoding: Mutex::default(),
        }))
    }

    /// The series of these labels, created if there is room; else that of their coarse form. It does not expire while the
    /// returned handle exists.
    #[must_use]
    pub fn get_or_create(&self, labels: &L) -> M {
        self.get_or_create_hashed(Hashed::new(labels))
    }

    /// As [`Self::get_or_create`], for labels that are looked up in several families.
    #[must_use]
    pub fn get_or_create_hashed(&self, labels: Hashed<'_, L>) -> M {
        let Families { live, kept, limit, shares, .. } = &*self.0;
        let create = || live.get_or_create_below(labels, *limit);
        let series = match live.get(labels) {
            Some(found) => Some(found),
            None => match labels.labels().source() {
                None => create(),
                Some(source) => {
                    let free = || limit.saturating_sub(live.len());
                    shares.take(source, || live.get(labels), free, create)
                }
            },
        };
        series.unwrap_or_else(|| kept.get_or_create(&labels.labels().coarse()))
    }

    /// Number of series.
    #[must_use]
    pub fn series(&self) -> usize {
        self.0.live.len()
    }

    /// Expires series that have not changed for [`IDLE`], have no other handle, and whose labels are `gone`; returns how many.
    /// No lock is held while `gone` is called.
    pub fn sweep(&self, now: Instant, mut gone: impl FnMut(&L) -> bool) -> usize {
        let Families { live, kept, expired, encoding, shares, .. } = &*self.0;
        let mut idle = Vec::new();
        live.for_each(|labels, metric, mark| {
            let changes = metric.changes();
            let since = *mark.since.filter(|_| changes == mark.changes).get_or_insert(now);
            (mark.changes, mark.since) = (changes, Some(since));
            if now.duration_since(since) >= IDLE && !metric.is_held() {
                idle.push(Arc::clone(labels));
            }
        });
        idle.retain(|labels| gone(labels));
        let _guard = encoding.lock().unwrap_or_else(PoisonError::into_inner);
        let end = |labels: &&Arc<L>| {
            live.remove_if(labels, |metric, mark| {
                let still = !metric.is_held() && metric.changes() == mark.changes;
                if still {
                    kept.get_or_create(&labels.coarse()).absorb(metric);
                }
                still
            })
        };
        let ended: Vec<&Arc<L>> = idle.iter().filter(end).collect();
        ended.iter().filter_map(|labels| labels.source()).for_each(|source| shares.give_back(source));
        let ended = ended.len();
        expired.inc_by(ended as u64);
        ended
    }
}

/// Encodes both families of an [`Expiring`] consistently.
#[derive(Debug)]
pub(super) struct Pair<L: Coarse, M> {
    name: &'static str,
    help: &'static str,
    kept: String,
    family: Expiring<L, M>,
}

impl<L: Coarse, M: Total> Pair<L, M> {
    pub(super) fn new(name: &'static str, help: &'static str, family: Expiring<L, M>) -> Self {
        let kept = format!("isthmus_expired_{}", name.strip_prefix("istio_").unwrap_or(name));
        Self { name, help, kept, family }
    }
}

impl<L: Coarse, M: Total> Collector for Pair<L, M> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Families { live, kept, encoding, .. } = &*self.family.0;
        let _guard = encoding.lock().unwrap_or_else(PoisonError::into_inner);
        if !live.is_empty() {
            let help = format!("{}.", self.help);
            live.encode(encoder.encode_descriptor(self.name, &help, None, M::TYPE)?)?;
        }
        if !kept.is_empty() {
            let help =
                format!("{}: sums of expired series, and of labels above the series limit.", self.help);
            kept.encode(encoder.encode_descriptor(&self.kept, &help, None, M::TYPE)?)?;
        }
        Ok(())
    }
}

/// The limit and size of one family, for the metrics about families.
pub(super) struct Bounded {
    name: &'static str,
    limit: usize,
    series: Box<dyn Fn() -> usize + Send + Sync>,
    expired: Count,
}

impl Bounded {
    pub(super) fn new<L: Coarse, M: Total>(name: &'static str, family: Expiring<L, M>) -> Self {
        let (limit, expired) = (family.0.limit, family.0.expired.clone());
        Self { name, limit, series: Box::new(move || family.series()), expired }
    }

    fn labels(&self) -> [(&'static str, &'static str); 1] {
        [("family", self.name)]
    }
}

/// Encodes size and limit of every expiring family.
#[derive(Clone, Default)]
pub(super) struct Bounds(Arc<Mutex<Vec<Bounded>>>);

impl fmt::Debug for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounds").finish_non_exhaustive()
    }
}

impl Bounds {
    /// Adds a family; returns whether it is the first.
    pub(super) fn add(&self, family: Bounded) -> bool {
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        families.push(family);
        families.len() == 1
    }
}

impl Collector for Bounds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gauge = |value: usize| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let help = "Current series of a metric family whose series expire with their workloads.";
        let mut series = encoder.encode_descriptor("isthmus_metric_series", help, None, MetricType::Gauge)?;
        for family in families.iter() {
            gauge((family.series)()).encode(series.encode_family(&family.labels())?)?;
        }
        let help = "Limit of the series of such a family; further labels are counted in its isthmus_expired_ family.";
        let mut limit =
            encoder.encode_descriptor("isthmus_metric_series_limit", help, None, MetricType::Gauge)?;
        for family in families.iter() {
            gauge(family.limit).encode(limit.encode_family(&family.labels())?)?;
        }
        let help = "Expired series of such a family.";
        let mut expired =
            encoder.encode_descriptor("isthmus_metric_series_expired", help, None, MetricType::Counter)?;
        for family in families.iter() {
            ConstCounter::new(family.expired.get()).encode(expired.encode_family(&family.labels())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
