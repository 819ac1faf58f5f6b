use super::*;
use std::time::UNIX_EPOCH;

fn id(name: &str) -> SpiffeId {
    format!("spiffe://td/ns/n/sa/{name}").parse().unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

fn valid(from: u64, until: u64) -> Validity {
    Validity { not_before: at(from), not_after: at(until) }
}

fn schedule(in_flight: usize) -> Schedule {
    let limits = Limits { in_flight, jitter: 0.0, ..Limits::default() };
    Schedule::new(limits, fastrand::Rng::with_seed(1))
}

fn names(schedule: &mut Schedule, now: SystemTime) -> Vec<String> {
    std::iter::from_fn(|| schedule.next(now)).map(|job| job.identity.service_account.to_string()).collect()
}

#[test]
fn higher_priority_goes_first_then_longest_overdue() {
    let mut queue = schedule(8);
    let first = {
        queue.request(&id("renewed"), Priority::RealTime, at(0));
        queue.next(at(0)).unwrap()
    };
    assert!(queue.signed(&first, valid(0, 100), at(0)));
    queue.request(&id("later"), Priority::Prefetch, at(49));
    queue.request(&id("early"), Priority::Prefetch, at(48));
    queue.request(&id("waiting"), Priority::RealTime, at(51));
    assert_eq!(names(&mut queue, at(52)), ["waiting", "early", "later", "renewed"]);
}

#[test]
fn prefetch_is_raised_when_a_connection_waits_for_it() {
    let mut queue = schedule(8);
    queue.request(&id("a"), Priority::Prefetch, at(0));
    queue.request(&id("b"), Priority::Prefetch, at(1));
    queue.request(&id("b"), Priority::RealTime, at(2));
    queue.request(&id("b"), Priority::Prefetch, at(3));
    assert_eq!(names(&mut queue, at(3)), ["b", "a"]);
}

#[test]
fn requests_in_flight_are_limited() {
    let mut queue = schedule(2);
    for name in ["a", "b", "c"] {
        queue.request(&id(name), Priority::Prefetch, at(0));
    }
    let first = queue.next(at(0)).unwrap();
    queue.next(at(0)).unwrap();
    assert_eq!(queue.next(at(0)), None);
    assert_eq!(queue.wake_at(), None, "only a result can make room");
    // Forgetting an identity does not end its request in flight.
    queue.forget(&first.identity);
    assert_eq!(queue.next(at(0)), None);
    assert!(
        !queue.signed(&first, valid(0, 100), at(1)),
        "the certificate of a forgotten identity is dropped"
    );
    assert_eq!(queue.next(at(1)).unwrap().identity, id("c"));
}

#[test]
fn renewal_is_due_at_half_life() {
    let mut queue = schedule(8);
    queue.request(&id("a"), Priority::RealTime, at(0));
    let job = queue.next(at(0)).unwrap();
    queue.signed(&job, valid(0, 86_400), at(5));
    assert_eq!(queue.wake_at(), Some(at(43_200)));
    assert_eq!(queue.next(at(43_199)), None);
    assert_eq!(queue.next(at(43_200)).unwrap().identity, id("a"));
}

#[test]
fn renewals_are_jittered_around_half_life() {
    let mut queue = Schedule::new(Limits::default(), fastrand::Rng::with_seed(7));
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..50 {
        let identity = id(&n.to_string());
        queue.request(&identity, Priority::Prefetch, at(0));
        let job = queue.next(at(0)).unwrap();
        queue.signed(&job, valid(0, 1000), at(0));
        let due = queue.wake_at().unwrap();
        assert!((at(450)..=at(550)).contains(&due), "{due:?}");
        seen.insert(due);
        queue.forget(&identity);
    }
    assert!(seen.len() > 25, "{} different times", seen.len());
}

#[test]
fn certificate_past_its_half_life_is_renewed_after_the_minimum_delay() {
    let mut queue = schedule(8);
    queue.request(&id("a"), Priority::RealTime, at(90));
    let job = queue.next(at(90)).unwrap();
    queue.signed(&job, valid(0, 100), at(90));
    assert_eq!(queue.wake_at(), Some(at(91)));
}

#[test]
fn backoff_doubles_and_success_resets_it() {
    let mut queue = schedule(8);
    queue.request(&id("a"), Priority::RealTime, at(0));
    let mut now = at(0);
    for want in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 150.0, 150.0] {
        let job = queue.next(now).unwrap();
        assert!(queue.failed(&job, now));
        // A request meanwhile does not shorten the backoff.
        queue.request(&id("a"), Priority::RealTime, now);
        let due = queue.wake_at().unwrap();
        let waited = due.duration_since(now).unwrap().as_secs_f64();
        assert!((want * 0.8 - 1e-6..=want * 1.2 + 1e-6).contains(&waited), "{waited} is not about {want}");
        now = due;
    }
    let job = queue.next(now).unwrap();
    let validity = Validity { not_before: now, not_after: now + Duration::from_secs(100) };
    queue.signed(&job, validity, now);
    let half = now + Duration::from_secs(50);
    let job = queue.next(half).unwrap();
    queue.failed(&job, half);
    assert!(queue.wake_at().unwrap() <= half + Duration::from_millis(1200));
}

#[test]
fn failed_renewal_is_retried_at_expiry_at_the_latest() {
    let mut queue = schedule(8);
    queue.request(&id("a"), Priority::RealTime, at(0));
    let job = queue.next(at(0)).unwrap();
    queue.signed(&job, valid(0, 100), at(0));
    let mut now = at(50);
    while now < at(100) {
        let job = queue.next(now).expect("a retry is due");
        queue.failed(&job, now);
        now = queue.wake_at().unwrap();
    }
    assert_eq!(now, at(100), "backoff is capped at the expiry");
}

#[test]
fn requested_expired_certificate_is_due_at_once() {
    let mut queue = schedule(8);
    queue.request(&id("a"), Priority::RealTime, at(0));
    let job = queue.next(at(0)).unwrap();
    queue.signed(&job, valid(0, 1_000_000), at(0));
    queue.request(&id("a"), Priority::RealTime, at(1));
    assert_eq!(queue.next(at(1)), None, "a valid one is not requested again");
    // Seen from a clock that jumped, the renewal at half-life is long overdue and comes with the highest priority.
    queue.request(&id("b"), Priority::Prefetch, at(10));
    queue.request(&id("a"), Priority::RealTime, at(1_000_001));
    assert_eq!(names(&mut queue, at(1_000_001)), ["a", "b"]);
}

#[test]
fn result_for_a_forgotten_identity_is_stale() {
    let mut queue = schedule(8);
    queue.request(&id("a"), Priority::Prefetch, at(0));
    let old = queue.next(at(0)).unwrap();
    queue.forget(&id("a"));
    queue.request(&id("a"), Priority::Prefetch, at(1));
    let new = queue.next(at(1)).unwrap();
    assert!(!queue.failed(&old, at(2)));
    assert!(queue.signed(&new, valid(0, 100), at(2)));
}
