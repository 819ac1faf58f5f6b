//! Random sequences of events against an oracle that keeps every pod's work in plain lists.

use std::collections::BTreeSet;

use isthmus_kit::random::sequences;

use super::*;

const PODS: [&str; 5] = ["a", "b", "c", "d", "e"];

#[derive(Default)]
struct Oracle {
    requests: Vec<(PodUid, u32)>,
    dirty: BTreeSet<PodUid>,
    retries: BTreeSet<PodUid>,
    running: BTreeSet<PodUid>,
}

impl Oracle {
    /// Checks what the queue has handed out, or that it had nothing to hand out.
    fn check(&mut self, queue: &mut WorkQueue<u32>, limit: usize, now: Instant) {
        let (full, popped) = (self.running.len() >= limit, queue.pop(now));
        // Those that were due became work.
        let waits = |uid: &PodUid| queue.entries.get(uid).is_some_and(|entry| entry.retry_at.is_some());
        let due: Vec<_> = self.retries.iter().filter(|uid| !waits(uid)).cloned().collect();
        for uid in due {
            self.retries.remove(&uid);
            self.dirty.insert(uid);
        }
        let next = self.requests.iter().position(|(uid, _)| !self.running.contains(uid));
        match popped {
            Some((uid, item)) => {
                assert!(
                    !full && self.running.insert(uid.clone()),
                    "{uid} has two workers, or there are too many"
                );
                match item {
                    WorkItem::Add(request) => {
                        assert_eq!(self.requests.remove(next.expect("a request")), (uid, request));
                    }
                    WorkItem::Reconcile => {
                        assert_eq!(next, None, "a request waits behind a reconciliation");
                        assert!(self.dirty.remove(&uid), "{uid} has no work");
                    }
                }
            }
            None if !full => {
                assert_eq!(next, None, "a request is held back");
                let idle: Vec<_> = self.dirty.difference(&self.running).collect();
                assert!(idle.is_empty(), "held back: {idle:?}");
            }
            None => {}
        }
    }
}

#[test]
fn random_events_lose_and_invent_no_work() {
    sequences(300, |random| {
        let limit = random.usize(1..4);
        let (mut queue, mut oracle) = (WorkQueue::new(limit), Oracle::default());
        let mut now = Instant::now();
        for request in 0..random.u32(1..200) {
            let uid: PodUid = PODS[random.usize(..PODS.len())].into();
            match random.u8(..10) {
                0..3 => {
                    queue.enqueue(&uid);
                    oracle.retries.remove(&uid);
                    oracle.dirty.insert(uid);
                }
                3..5 => {
                    queue.enqueue_request(&uid, request);
                    oracle.requests.push((uid, request));
                }
                5..8 => oracle.check(&mut queue, limit, now),
                8 => {
                    let outcome = if random.bool() { Outcome::Done } else { Outcome::Requeue };
                    queue.finish(&uid, outcome, now);
                    if oracle.running.remove(&uid) && outcome == Outcome::Requeue {
                        oracle.retries.insert(uid);
                    }
                }
                _ => now += Duration::from_millis(random.u64(..3_000)),
            }
            let waits = oracle.retries.difference(&oracle.running).next().is_some();
            assert_eq!(queue.next_retry().is_some(), waits, "retries {:?}", oracle.retries);
        }
        // Everything is done in the end, and nothing is kept.
        while !queue.entries.is_empty() {
            now = queue.next_retry().unwrap_or(now).max(now);
            oracle.check(&mut queue, limit, now);
            if let Some(uid) = oracle.running.pop_first() {
                queue.finish(&uid, Outcome::Done, now);
            }
        }
        assert!(oracle.requests.is_empty() && oracle.dirty.is_empty() && oracle.retries.is_empty());
        assert!(queue.ready.is_empty() && queue.urgent.is_empty());
    });
}
