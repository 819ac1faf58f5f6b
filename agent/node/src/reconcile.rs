//! When to look at which pod: a queue with one turn at a time per pod, retries that wait longer and longer, and the
//! plugin's requests before everything else. Sans-IO: the caller brings the clock and does the work.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use isthmus_model::name::PodUid;
use isthmus_rt::backoff::Backoff;

const SHORTEST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(5);

/// What a turn is for.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<A> {
    /// Something about the pod may have changed.
    Look,
    /// The plugin asks for it.
    Add(A),
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do until something changes.
    Settled,
    /// It failed and is worth another try.
    Retry,
}

/// The queue. `A` is whatever the plugin's request carries.
#[derive(Debug)]
pub struct Reconcile<A> {
    entries: HashMap<PodUid, Entry<A>>,
    /// Pods that may have their turn now, in order of their asking.
    ready: VecDeque<PodUid>,
    running: usize,
    limit: usize,
}

#[derive(Debug)]
struct Entry<A> {
    running: bool,
    queued: bool,
    look: bool,
    adds: VecDeque<A>,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

impl<A> Reconcile<A> {
    /// An empty queue that lets `limit` pods have their turns at the same time.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), ready: VecDeque::new(), running: 0, limit }
    }

    /// The pod must be looked at.
    pub fn touch(&mut self, uid: &PodUid) {
        let entry = self.entry(uid);
        entry.look = true;
        entry.retry_at = None;
        self.offer(uid);
    }

    /// The plugin asks for the pod.
    pub fn add(&mut self, uid: &PodUid, request: A) {
        self.entry(uid).adds.push_back(request);
        self.offer(uid);
    }

    /// The next turn, if one may begin; it runs until [`done`](Self::done).
    pub fn next(&mut self, now: Instant) -> Option<(PodUid, Turn<A>)> {
        self.wake(now);
        if self.running >= self.limit {
            return None;
        }
        let uid = self.ready.pop_front()?;
        let entry = self.entries.get_mut(&uid)?;
        entry.queued = false;
        entry.running = true;
        self.running += 1;
        if let Some(request) = entry.adds.pop_front() {
            return Some((uid, Turn::Add(request)));
        }
        entry.look = false;
        Some((uid, Turn::Look))
    }

    /// A turn has ended.
    pub fn done(&mut self, uid: &PodUid, outcome: Outcome, now: Instant) {
        let Some(entry) = self.entries.get_mut(uid).filter(|entry| entry.running) else { return };
        self.running -= 1;
        entry.running = false;
        match outcome {
            Outcome::Settled => entry.backoff.reset(),
            Outcome::Retry => entry.retry_at = Some(now + entry.backoff.next_delay()),
        }
        if entry.look || !entry.adds.is_empty() {
            self.offer(uid);
        } else if entry.retry_at.is_none() {
            self.entries.remove(uid);
        }
    }

    /// When [`next`](Self::next) should be asked again although nothing happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.entries.values().filter(|entry| !entry.running).filter_map(|entry| entry.retry_at).min()
    }

    fn wake(&mut self, now: Instant) {
        let due = |entry: &&mut Entry<A>| !entry.running && entry.retry_at.is_some_and(|at| at <= now);
        let mut woken = Vec::new();
        for (uid, entry) in &mut self.entries {
            if due(&entry) {
                entry.retry_at = None;
                entry.look = true;
                woken.push(uid.clone());
            }
        }
        woken.iter().for_each(|uid| self.offer(uid));
    }

    fn offer(&mut self, uid: &PodUid) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if entry.running || entry.queued {
            return;
        }
        entry.queued = true;
        if entry.adds.is_empty() {
            self.ready.push_back(uid.clone());
        } else {
            // A pod's creation waits for this one.
            self.ready.push_front(uid.clone());
        }
    }

    fn entry(&mut self, uid: &PodUid) -> &mut Entry<A> {
        self.entries.entry(uid.clone()).or_insert_with(|| Entry {
            running: false,
            queued: false,
            look: false,
            adds: VecDeque::new(),
            retry_at: None,
            backoff: Backoff::new(SHORTEST, LONGEST),
        })
    }
}

#[cfg(test)]
mod tests;
