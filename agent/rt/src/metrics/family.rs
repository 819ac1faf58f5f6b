//! A metric family whose encoding does not block counting. The one of `prometheus_client` holds its lock while it is
//! encoded, so a connection that creates a series, and every connection behind it, would wait for the whole scrape.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hash};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};
use tokio::time::Instant;

use super::hashed::{Hashed, Key, Lookup, Unhashed};

/// Number of shards, each with its own lock: more than the data plane has threads on most nodes.
const SHARDS: usize = 16;

/// Series of type `M` by their labels. Clones share them. `M` must share its value between clones, as counters and
/// gauges do.
pub struct Family<L, M>(Arc<Shards<L, M>>);

struct Shards<L, M> {
    /// Number of series in all shards.
    count: AtomicUsize,
    shards: [Shard<L, M>; SHARDS],
}

type Series<L, M> = HashMap<Key<L>, Entry<M>, BuildHasherDefault<Unhashed>>;

struct Shard<L, M>(RwLock<Series<L, M>>);

struct Entry<M> {
    metric: M,
    mark: Mark,
}

/// State of a series at the last sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Its number of changes.
    pub(super) changes: u64,
    /// Since when it has not changed; `None` before the first sweep.
    pub(super) since: Option<Instant>,
}

// === impl Shard ===

impl<L, M> Default for Shard<L, M> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<L, M> Shard<L, M> {
    // Poisoning is ignored: nothing panics while a shard is inconsistent.
    fn read(&self) -> RwLockReadGuard<'_, Series<L, M>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Series<L, M>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Family ===

impl<L, M> Default for Family<L, M> {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| Shard::default());
        Self(Arc::new(Shards { count: AtomicUsize::new(0), shards }))
    }
}

impl<L, M> Clone for Family<L, M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L, M> fmt::Debug for Family<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Family").finish_non_exhaustive()
    }
}

impl<L, M> Family<L, M> {
    /// Number of series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Whether there is no series.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<L: Clone + Eq + Hash, M: Clone + Default> Family<L, M> {
    /// The series of these labels, created if it does not exist.
    #[must_use]
    pub fn get_or_create(&self, labels: &L) -> M {
        self.get_or_create_below(Hashed::new(labels), usize::MAX).unwrap_or_default()
    }

    /// The series of these labels, if it exists.
    pub(super) fn get(&self, labels: Hashed<'_, L>) -> Option<M> {
        let lookup = &labels as &dyn Lookup<L>;
        self.shard(labels).read().get(lookup).map(|entry| entry.metric.clone())
    }

    /// As [`Self::get_or_create`], but creates none at `limit` series or more.
    pub(super) fn get_or_create_below(&self, labels: Hashed<'_, L>, limit: usize) -> Option<M> {
        let (shard, lookup) = (self.shard(labels), &labels as &dyn Lookup<L>);
        if let Some(entry) = shard.read().get(lookup) {
            return Some(entry.metric.clone());
        }
        let mut shard = shard.write();
        if let Some(entry) = shard.get(lookup) {
            return Some(entry.metric.clone());
        }
        if self.0.count.fetch_add(1, Ordering::Relaxed) >= limit {
            self.0.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let entry = Entry { metric: M::default(), mark: Mark::default() };
        let metric = entry.metric.clone();
        shard.insert(Key::new(labels), entry);
        Some(metric)
    }

    /// Removes a series; returns whether it existed. What is counted through handles that still exist is lost.
    pub fn remove(&self, labels: &L) -> bool {
        self.remove_if(labels, |_, _| true)
    }

    /// Removes a series if `last` agrees. `last` is called under the lock of the shard.
    pub(super) fn remove_if(&self, labels: &L, last: impl FnOnce(&M, Mark) -> bool) -> bool {
        let labels = Hashed::new(labels);
        let (mut shard, lookup) = (self.shard(labels).write(), &labels as &dyn Lookup<L>);
        let goes = shard.get(lookup).is_some_and(|entry| last(&entry.metric, entry.mark));
        if goes {
            shard.remove(lookup);
            self.0.count.fetch_sub(1, Ordering::Relaxed);
        }
        goes
    }

    /// Visits every series, one shard after the other.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&Arc<L>, &M, &mut Mark)) {
        for shard in &self.0.shards {
            for (key, entry) in shard.write().iter_mut() {
                visit(&key.labels, &entry.metric, &mut entry.mark);
            }
        }
    }

    fn shard(&self, labels: Hashed<'_, L>) -> &Shard<L, M> {
        &self.0.shards[labels.hash().shard(SHARDS)]
    }
}

impl<L, M> EncodeMetric for Family<L, M>
where
    L: EncodeLabelSet + Clone + Eq + Hash,
    M: EncodeMetric + TypedMetric + Clone,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for shard in &self.0.shards {
            // Pointers are copied under the lock, and encoded without it.
            let series: Vec<(Arc<L>, M)> = {
                let entries = shard.read();
                entries.iter().map(|(key, entry)| (Arc::clone(&key.labels), entry.metric.clone())).collect()
            };
            for (labels, metric) in &series {
                metric.encode(encoder.encode_family(labels.as_ref())?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
}

impl<L, M: TypedMetric> TypedMetric for Family<L, M> {
    const TYPE: MetricType = M::TYPE;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Registry;
    use prometheus_client::metrics::counter::Counter;
    use std::sync::mpsc;
    use std::time::Duration;

    type Labels = Vec<(String, String)>;

    fn labels(number: usize) -> Labels {
        (0..27).map(|label| (format!("label_{label}"), format!("value {number}"))).collect()
    }

    #[test]
    fn series_are_created_encoded_and_removed() {
        let family = Family::<Labels, Counter>::default();
        let registry = Registry::default();
        registry.register("seen", "Seen", family.clone());
        assert!(!registry.encode().unwrap().contains("seen"), "a family without series is not shown");
        family.get_or_create(&labels(1)).inc();
        family.get_or_create(&labels(1)).inc();
        family.get_or_create(&labels(2)).inc();
        let text = registry.encode().unwrap();
        assert!(text.contains("# TYPE seen counter"), "{text}");
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("seen_total{label_0=")).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().any(|line| line.contains("value 1") && line.ends_with("} 2")), "{text}");
        assert!(family.remove(&labels(1)) && !family.remove(&labels(1)));
        assert_eq!(family.len(), 1);
    }

    /// A slow reader: at the first series it waits until new series were counted.
    struct Slow {
        counted: mpsc::Receiver<()>,
        begun: mpsc::SyncSender<()>,
        text: String,
        waited: bool,
    }

    impl fmt::Write for Slow {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.text.push_str(text);
            if !self.waited && self.text.contains("value") {
                self.waited = true;
                self.begun.send(()).map_err(|_| fmt::Error)?;
                self.counted.recv_timeout(Duration::from_secs(30)).map_err(|_| fmt::Error)?;
            }
            Ok(())
        }
    }

    #[test]
    fn new_series_do_not_wait_for_a_scrape() {
        let family = Family::<Labels, Counter>::default();
        let registry = Registry::default();
        registry.register("seen", "Seen", family.clone());
        (0..100).for_each(|number| {
            family.get_or_create(&labels(number)).inc();
        });
        let ((count, counted), (begun, encoding)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
        let mut slow = Slow { counted, begun, text: String::new(), waited: false };
        let scrape = std::thread::spawn(move || registry.encode_to(&mut slow));
        encoding.recv_timeout(Duration::from_secs(30)).unwrap();
        // Enough to hit every shard, the one being encoded included.
        (100..500).for_each(|number| {
            family.get_or_create(&labels(number)).inc();
        });
        count.send(()).unwrap();
        assert!(scrape.join().unwrap().is_ok(), "counting waited for the scrape");
    }
}
