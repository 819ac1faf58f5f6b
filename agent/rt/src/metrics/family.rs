//! A family of series whose encoding stops nobody who counts. The one of `prometheus_client` holds its lock while it is
//! encoded, so a connection that makes a new series, and everybody behind it, would wait for the whole scrape.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Parts with a lock each; more than there are threads of the data plane on most nodes.
const SHARDS: usize = 16;

/// Series of type `M` by their labels. Clones share them. `M` must share its value between clones, as counters and
/// gauges do.
pub struct Family<L, M>(Arc<Shards<L, M>>);

struct Shards<L, M> {
    hasher: RandomState,
    shards: [RwLock<HashMap<Key<L>, M>>; SHARDS],
}

/// Labels that a scrape can hold on to without copying them.
struct Key<L>(Arc<L>);

impl<L: Eq> PartialEq for Key<L> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<L: Eq> Eq for Key<L> {}

impl<L: Hash> Hash for Key<L> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<L> Borrow<L> for Key<L> {
    fn borrow(&self) -> &L {
        &self.0
    }
}

// === impl Family ===

impl<L, M> Default for Family<L, M> {
    fn default() -> Self {
        let shards = std::array::from_fn(|_| RwLock::default());
        Self(Arc::new(Shards { hasher: RandomState::new(), shards }))
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
    /// How many series there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let count =
            |shard: &RwLock<HashMap<Key<L>, M>>| shard.read().unwrap_or_else(PoisonError::into_inner).len();
        self.0.shards.iter().map(count).sum()
    }

    /// Whether there is no series.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<L: Clone + Eq + Hash, M: Clone + Default> Family<L, M> {
    /// The series of these labels, made when there is none.
    #[must_use]
    pub fn get_or_create(&self, labels: &L) -> M {
        let shard = self.shard(labels);
        if let Some(metric) = shard.read().unwrap_or_else(PoisonError::into_inner).get(labels) {
            return metric.clone();
        }
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        shard.entry(Key(Arc::new(labels.clone()))).or_default().clone()
    }

    /// Ends the series of these labels; whether there was one. Whoever still holds it counts for nobody.
    pub fn remove(&self, labels: &L) -> bool {
        self.shard(labels).write().unwrap_or_else(PoisonError::into_inner).remove(labels).is_some()
    }

    fn shard(&self, labels: &L) -> &RwLock<HashMap<Key<L>, M>> {
        let hash = self.0.hasher.hash_one(labels).to_le_bytes();
        &self.0.shards[usize::from(hash[0]) % SHARDS]
    }
}

impl<L, M> EncodeMetric for Family<L, M>
where
    L: EncodeLabelSet + Clone + Eq + Hash,
    M: EncodeMetric + TypedMetric + Clone,
{
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for shard in &self.0.shards {
            // Pointers are copied under the lock and written out without it.
            let series: Vec<(Arc<L>, M)> = {
                let held = shard.read().unwrap_or_else(PoisonError::into_inner);
                held.iter().map(|(labels, metric)| (Arc::clone(&labels.0), metric.clone())).collect()
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
    use crate::metrics::Metrics;
    use prometheus_client::metrics::counter::Counter;
    use std::sync::mpsc;
    use std::time::Duration;

    type Labels = Vec<(String, String)>;

    fn labels(number: usize) -> Labels {
        (0..27).map(|label| (format!("label_{label}"), format!("value {number}"))).collect()
    }

    #[test]
    fn series_are_found_again_shown_and_removed() {
        let family = Family::<Labels, Counter>::default();
        let registry = Metrics::default();
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

    /// Takes text slowly: when the first series arrives it waits until somebody has counted.
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
        let registry = Metrics::default();
        registry.register("seen", "Seen", family.clone());
        (0..100).for_each(|number| {
            family.get_or_create(&labels(number)).inc();
        });
        let ((count, counted), (begun, encoding)) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
        let mut slow = Slow { counted, begun, text: String::new(), waited: false };
        let scrape = std::thread::spawn(move || registry.encode_to(&mut slow));
        encoding.recv_timeout(Duration::from_secs(30)).unwrap();
        // Enough of them to come into every part, the one that is being written too.
        (100..500).for_each(|number| {
            family.get_or_create(&labels(number)).inc();
        });
        count.send(()).unwrap();
        assert!(scrape.join().unwrap().is_ok(), "who counted waited for the scrape");
    }
}
