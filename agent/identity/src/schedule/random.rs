//! Random sequences of events against what must hold for every schedule.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use isthmus_kit::random::sequences;

use super::*;

const IDENTITIES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn id(name: &str) -> SpiffeId {
    format!("spiffe://td/ns/n/sa/{name}").parse().unwrap()
}

/// Known identities: how many of them are in flight, and until when the last certificate is valid.
#[derive(Default)]
struct Oracle {
    known: BTreeMap<SpiffeId, Option<SystemTime>>,
    jobs: Vec<Job>,
}

impl Oracle {
    /// Takes every job that is to be made now.
    fn start(&mut self, schedule: &mut Schedule, limit: usize, now: SystemTime) {
        while let Some(job) = schedule.next(now) {
            assert!(self.known.contains_key(&job.identity), "{} was forgotten", job.identity);
            let twice = |other: &&Job| {
                other.identity == job.identity
                    && schedule.slots[&job.identity].phase == Phase::Signing(other.ticket)
            };
            assert!(!self.jobs.iter().any(|other| twice(&other)), "{} is requested twice", job.identity);
            self.jobs.push(job);
        }
        assert!(self.jobs.len() <= limit, "{} requests in flight", self.jobs.len());
        // No loop: what is to be done is done, so that the next wake-up lies ahead.
        assert!(schedule.wake_at().is_none_or(|due| due > now));
        if self.jobs.len() < limit {
            let signing = |id: &SpiffeId| matches!(schedule.slots[id].phase, Phase::Signing(_));
            let idle = self.known.keys().any(|id| !signing(id));
            assert_eq!(schedule.wake_at().is_some(), idle, "an identity is neither due nor in flight");
        }
    }
}

#[test]
fn random_events_keep_every_identity_due_or_in_flight_and_never_loop() {
    sequences(300, |random| {
        let limit = random.usize(1..4);
        let limits = Limits { in_flight: limit, ..Limits::default() };
        let mut schedule = Schedule::new(limits, random.fork());
        let (mut oracle, mut now) = (Oracle::default(), UNIX_EPOCH + Duration::from_secs(1_000_000));
        for _ in 0..random.usize(1..200) {
            let id = id(IDENTITIES[random.usize(..IDENTITIES.len())]);
            match random.u8(..10) {
                0..3 => {
                    let priority = if random.bool() { Priority::RealTime } else { Priority::Prefetch };
                    schedule.request(&id, priority, now);
                    oracle.known.entry(id).or_default();
                }
                3 => {
                    schedule.forget(&id);
                    oracle.known.remove(&id);
                }
                4..8 if !oracle.jobs.is_empty() => {
                    let job = oracle.jobs.swap_remove(random.usize(..oracle.jobs.len()));
                    // Of whatever validity: a CA may answer anything.
                    let validity = Validity {
                        not_before: now - Duration::from_secs(random.u64(..2_000)),
                        not_after: now + Duration::from_secs(random.u64(..2_000)),
                    };
                    let accepted = match random.bool() {
                        true => schedule.signed(&job, validity, now),
                        false => schedule.failed(&job, now),
                    };
                    assert!(
                        !accepted || oracle.known.contains_key(&job.identity),
                        "a forgotten identity came back"
                    );
                }
                // Also back: clocks are set.
                8 => now -= Duration::from_secs(random.u64(..100)),
                _ => now += Duration::from_secs(random.u64(..1_000)),
            }
            oracle.start(&mut schedule, limit, now);
            assert!(schedule.slots.len() == oracle.known.len());
        }
    });
}
