//! A work queue as Kubernetes controllers have it: at most one worker per pod, coalesced changes, retries with
//! exponential backoff, and the CNI plugin's requests before everything else. No I/O: the caller brings the clock and
//! does the work.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use isthmus_model::PodUid;
use isthmus_rt::backoff::Backoff;

/// Delay of the first retry.
const MIN_BACKOFF: Duration = Duration::from_millis(5);
/// Longest delay between retries.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// What to do for a pod.
#[derive(Debug, PartialEq, Eq)]
pub enum WorkItem<R> {
    /// The pod, or something that its enrolment depends on, may have changed.
    Reconcile,
    /// The CNI plugin requests the pod's enrolment and waits.
    Add(R),
}

/// How a work item ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done until something changes.
    Done,
    /// Failed: reconcile again after a backoff.
    Requeue,
}

/// The queue. `R` is the plugin's request.
#[derive(Debug)]
pub struct WorkQueue<R> {
    entries: HashMap<PodUid, Entry<R>>,
    /// The pods of the plugin's requests, in the order in which they came; a pod is named once for each of its own. A pod's
    /// creation blocks on its request, and the plugin gives up after five seconds.
    urgent: VecDeque<PodUid>,
    /// Pods to be reconciled.
    ready: VecDeque<PodUid>,
    running: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry<R> {
    running: bool,
    /// To be reconciled: it is among the ready ones.
    dirty: bool,
    requests: VecDeque<R>,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

impl<R> WorkQueue<R> {
    /// An empty queue that lets `limit` pods be worked on at the same time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        let (urgent, ready) = (VecDeque::new(), VecDeque::new());
        Self { entries: HashMap::new(), urgent, ready, running: 0, limit }
    }

    /// Queues the pod for reconciliation, cancelling a pending backoff.
    pub fn enqueue(&mut self, uid: &PodUid) {
        self.entry(uid).retry_at = None;
        self.schedule(uid);
    }

    /// Queues a request of the plugin.
    pub fn enqueue_request(&mut self, uid: &PodUid, request: R) {
        self.entry(uid).requests.push_back(request);
        self.urgent.push_back(uid.clone());
    }

    /// The next work item, if one may start. The pod is busy until [`finish`](Self::finish).
    pub fn pop(&mut self, now: Instant) -> Option<(PodUid, WorkItem<R>)> {
        self.schedule_retries(now);
        if self.running >= self.limit {
            return None;
        }
        let Self { entries, urgent, ready, .. } = self;
        let idle = |uid: &PodUid| entries.get(uid).is_some_and(|entry| !entry.running);
        let (uid, is_urgent) = match urgent.iter().position(idle) {
            Some(at) => (urgent.remove(at)?, true),
            None => (ready.remove(ready.iter().position(idle)?)?, false),
        };
        let entry = entries.get_mut(&uid)?;
        let request = if is_urgent { entry.requests.pop_front() } else { None };
        if !is_urgent {
            // It does what a retry would.
            (entry.dirty, entry.retry_at) = (false, None);
        }
        entry.running = true;
        self.running += 1;
        Some((uid, request.map_or(WorkItem::Reconcile, WorkItem::Add)))
    }

    /// A work item has ended.
    pub fn finish(&mut self, uid: &PodUid, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid).filter(|entry| entry.running) else { return };
        self.running -= 1;
        entry.running = false;
        match outcome {
            Outcome::Done => entry.backoff.reset(),
            Outcome::Requeue => entry.retry_at = Some(now + entry.backoff.next_delay()),
        }
        if !entry.dirty && entry.requests.is_empty() && entry.retry_at.is_none() {
            self.entries.remove(uid);
        }
    }

    /// When the next retry is due; [`pop`](Self::pop) must be called then.
    #[must_use]
    pub fn next_retry(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| !entry.running).filter_map(|entry| entry.retry_at).min()
    }

    fn schedule_retries(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (uid, entry) in &mut self.entries {
            if !entry.running && entry.retry_at.is_some_and(|at| at <= now) {
                entry.retry_at = None;
                due.push(uid.clone());
            }
        }
        due.iter().for_each(|uid| self.schedule(uid));
    }

    fn schedule(&mut self, uid: &PodUid) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if !std::mem::replace(&mut entry.dirty, true) {
            self.ready.push_back(uid.clone());
        }
    }

    fn entry(&mut self, uid: &PodUid) -> &mut Entry<R> {
        self.entries.entry(uid.clone()).or_insert_with(|| Entry {
            running: false,
            dirty: false,
            requests: VecDeque::new(),
            retry_at: None,
            backoff: Backoff::new(MIN_BACKOFF, MAX_BACKOFF),
        })
    }
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
