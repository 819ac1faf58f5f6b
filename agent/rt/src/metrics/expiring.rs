//! Families whose series end: a series whose labels name what is gone is dropped when it has not changed for [`IDLE`]
//! and nobody holds it, and what it had counted is kept under coarse labels in a family of our own. So the memory of a
//! family has a bound, and the sum over both families never falls. A series that comes back starts at 0.
//!
//! The bound holds even when labels are invented faster than series end: above [`LIMIT`] nothing is made any more, and
//! what would be new is counted under the coarse labels at once.

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
use super::total::{Count, Total};

/// How long a series stays after its last change, at least.
pub const IDLE: Duration = Duration::from_secs(15 * 60);
/// How often series should be looked at.
pub const INTERVAL: Duration = Duration::from_secs(60);
/// Series of one family, at most.
pub const LIMIT: usize = 10_000;

/// What labels of series can be used for.
pub trait Labels: EncodeLabelSet + Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static {}
impl<L: EncodeLabelSet + Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static> Labels for L {}

/// Labels that have a coarse form, of which there are few.
pub trait Coarse: Labels {
    /// The coarse form.
    type Kept: Labels;

    /// The coarse form of these.
    fn coarse(&self) -> Self::Kept;
}

/// The family. Clones share it.
pub struct Expiring<L: Coarse, M>(Arc<Inner<L, M>>);

struct Inner<L: Coarse, M> {
    live: Family<L, M>,
    kept: Family<L::Kept, M>,
    expired: Count,
    limit: usize,
    /// Held while both families are shown and while series move from one to the other: a sum is never seen twice or not
    /// at all. Who counts does not take it.
    turn: Mutex<()>,
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
        Self(Arc::new(Inner {
            live: Family::default(),
            kept: Family::default(),
            expired: Count::default(),
            limit,
            turn: Mutex::default(),
        }))
    }

    /// The series of these labels, made when there is none and room for one. It stays while what is returned is held.
    #[must_use]
    pub fn get_or_create(&self, labels: &L) -> M {
        let Inner { live, kept, limit, .. } = &*self.0;
        live.get_or_create_below(labels, *limit).unwrap_or_else(|| kept.get_or_create(&labels.coarse()))
    }

    /// How many series there are.
    #[must_use]
    pub fn series(&self) -> usize {
        self.0.live.len()
    }

    /// Ends the series that have not changed for [`IDLE`], that nobody holds and whose labels are `gone`; how many those
    /// were. `gone` is asked while nothing is locked.
    pub fn sweep(&self, now: Instant, mut gone: impl FnMut(&L) -> bool) -> usize {
        let Inner { live, kept, expired, turn, .. } = &*self.0;
        let mut idle = Vec::new();
        live.look(|labels, metric, mark| {
            let changes = metric.changes();
            let since = *mark.since.filter(|_| changes == mark.changes).get_or_insert(now);
            (mark.changes, mark.since) = (changes, Some(since));
            if now.duration_since(since) >= IDLE && !metric.is_held() {
                idle.push(Arc::clone(labels));
            }
        });
        idle.retain(|labels| gone(labels));
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let end = |labels: &&Arc<L>| {
            live.remove_if(labels, |metric, mark| {
                let still = !metric.is_held() && metric.changes() == mark.changes;
                if still {
                    kept.get_or_create(&labels.coarse()).absorb(metric);
                }
                still
            })
        };
        let ended = idle.iter().filter(end).count();
        expired.inc_by(ended as u64);
        ended
    }
}

/// Shows both families of an [`Expiring`] at one moment.
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
        let Inner { live, kept, turn, .. } = &*self.family.0;
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !live.is_empty() {
            let help = format!("{}.", self.help);
            live.encode(encoder.encode_descriptor(self.name, &help, None, M::TYPE)?)?;
        }
        if !kept.is_empty() {
            let help = format!("{}: sums of series that were ended, or were one too many.", self.help);
            kept.encode(encoder.encode_descriptor(&self.kept, &help, None, M::TYPE)?)?;
        }
        Ok(())
    }
}

/// A family as its bound is concerned.
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

/// Shows how many series of which families there are and may be.
#[derive(Clone, Default)]
pub(super) struct Bounds(Arc<Mutex<Vec<Bounded>>>);

impl fmt::Debug for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounds").finish_non_exhaustive()
    }
}

impl Bounds {
    /// Adds a family; whether it is the first.
    pub(super) fn add(&self, family: Bounded) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.push(family);
        held.len() == 1
    }
}

impl Collector for Bounds {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let gauge = |value: usize| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let help = "Series of a family whose series end when their workloads are gone.";
        let mut series = encoder.encode_descriptor("isthmus_metric_series", help, None, MetricType::Gauge)?;
        for family in held.iter() {
            gauge((family.series)()).encode(series.encode_family(&family.labels())?)?;
        }
        let help =
            "The most series that such a family may have; more are counted in its isthmus_expired_ family.";
        let mut limit =
            encoder.encode_descriptor("isthmus_metric_series_limit", help, None, MetricType::Gauge)?;
        for family in held.iter() {
            gauge(family.limit).encode(limit.encode_family(&family.labels())?)?;
        }
        let help = "Series of such a family that were ended.";
        let mut expired =
            encoder.encode_descriptor("isthmus_metric_series_expired", help, None, MetricType::Counter)?;
        for family in held.iter() {
            ConstCounter::new(family.expired.get()).encode(expired.encode_family(&family.labels())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
