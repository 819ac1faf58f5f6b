//! Orders of events that matter.

use std::cell::Cell;
use std::rc::Rc;

use super::*;

/// A tunnel that only counts its streams.
#[derive(Clone)]
struct FakeTunnel(Rc<FakeState>);

struct FakeState {
    name: &'static str,
    limit: Cell<usize>,
    active: Cell<usize>,
    alive: Cell<bool>,
    idle_since: Cell<Instant>,
}

impl FakeTunnel {
    fn new(name: &'static str, limit: usize) -> Self {
        Self(Rc::new(FakeState {
            name,
            limit: Cell::new(limit),
            active: Cell::new(0),
            alive: Cell::new(true),
            idle_since: Cell::new(Instant::now()),
        }))
    }

    fn full(name: &'static str, limit: usize) -> Self {
        let fake = Self::new(name, limit);
        fake.0.active.set(limit);
        fake
    }
}

impl PooledTunnel for FakeTunnel {
    type Permit = ();
    fn is_alive(&self) -> bool {
        self.0.alive.get()
    }
    fn active(&self) -> usize {
        self.0.active.get()
    }
    fn idle_since(&self) -> Option<Instant> {
        (self.active() == 0).then(|| self.0.idle_since.get())
    }
    fn reserve(&self) -> Option<()> {
        let room = self.active() < self.0.limit.get();
        room.then(|| self.0.active.set(self.active() + 1))
    }
}

type TestEntry = Entry<FakeTunnel, u32>;

/// An entry to which no tunnel is lightly loaded.
fn entry(streams_per_tunnel: usize) -> TestEntry {
    TestEntry::new(LoadPolicy { streams_per_tunnel, busy_streams: 0 })
}

/// The result of a checkout, as text.
fn checkout(entry: &mut TestEntry, waiter: u32) -> String {
    match entry.checkout(|| waiter) {
        Checkout::Use(fake, ()) => format!("use {}", fake.0.name),
        Checkout::Dial => "dial".to_owned(),
        Checkout::Wait => "wait".to_owned(),
        Checkout::Retired => "retired".to_owned(),
    }
}

fn grants(entry: &mut TestEntry) -> Vec<u32> {
    std::iter::from_fn(|| entry.next_grant().map(|(waiter, ..)| waiter)).collect()
}

#[tokio::test(start_paused = true)]
async fn one_caller_dials_and_the_others_wait_for_it() {
    let mut entry = entry(4);
    let results: Vec<_> = (0..6).map(|caller| checkout(&mut entry, caller)).collect();
    // The fifth would find the first tunnel full, so it dials a second one.
    assert_eq!(results, ["dial", "wait", "wait", "wait", "dial", "wait"]);
    let fake = FakeTunnel::new("a", 4);
    fake.reserve().unwrap();
    entry.dial_succeeded(fake);
    assert_eq!(grants(&mut entry), [1, 2, 3]);
    let fake = FakeTunnel::new("b", 4);
    fake.reserve().unwrap();
    entry.dial_succeeded(fake);
    assert_eq!(grants(&mut entry), [5]);
    assert_eq!(checkout(&mut entry, 6), "use b");
}

#[tokio::test(start_paused = true)]
async fn failed_dial_fails_every_waiter_it_would_have_served() {
    let mut entry = entry(3);
    for caller in 0..5 {
        checkout(&mut entry, caller);
    }
    // Two dials (of 0 and 3) serve 1, 2 and 4; the remaining one serves two.
    assert_eq!(entry.dial_failed(), [1]);
    assert_eq!(entry.dial_failed(), [2, 4]);
    assert_eq!(checkout(&mut entry, 9), "dial");
}

#[tokio::test(start_paused = true)]
async fn abandoned_dial_passes_to_the_longest_waiting_caller() {
    let mut entry = entry(100);
    let results: Vec<_> = (0..3).map(|caller| checkout(&mut entry, caller)).collect();
    assert_eq!(results, ["dial", "wait", "wait"]);
    assert_eq!(entry.dial_abandoned(), Some(1));
    assert_eq!(checkout(&mut entry, 3), "wait");
    assert_eq!(entry.dial_abandoned(), Some(2));
    assert_eq!(entry.dial_abandoned(), Some(3));
    assert_eq!(entry.dial_abandoned(), None);
    assert_eq!(checkout(&mut entry, 4), "dial");
}

#[tokio::test(start_paused = true)]
async fn tunnel_with_fewer_streams_than_expected_strands_no_waiter() {
    let mut entry = entry(100);
    let results: Vec<_> = (0..4).map(|caller| checkout(&mut entry, caller)).collect();
    assert_eq!(results, ["dial", "wait", "wait", "wait"]);
    let small = FakeTunnel::new("small", 2);
    small.reserve().unwrap();
    entry.dial_succeeded(small);
    assert_eq!(grants(&mut entry), [1]);
    assert_eq!(entry.next_dialler(), Some(2));
    assert_eq!(entry.next_dialler(), None, "the new dial serves the last one");
}

#[tokio::test(start_paused = true)]
async fn full_tunnel_is_used_again_when_a_stream_ends() {
    let mut entry = entry(2);
    let full = FakeTunnel::full("a", 2);
    entry.dial_succeeded(full.clone());
    assert_eq!(checkout(&mut entry, 0), "dial");
    full.0.active.set(1);
    assert_eq!(checkout(&mut entry, 1), "use a");
}

#[tokio::test(start_paused = true)]
async fn ended_tunnels_are_removed_and_the_least_loaded_is_used() {
    let mut entry = entry(10);
    let (dead, busy, quiet) =
        (FakeTunnel::new("dead", 10), FakeTunnel::new("busy", 10), FakeTunnel::new("quiet", 10));
    dead.0.alive.set(false);
    busy.0.active.set(5);
    quiet.0.active.set(2);
    for fake in [dead, busy, quiet] {
        entry.dial_succeeded(fake);
    }
    assert_eq!(checkout(&mut entry, 0), "use quiet");
    assert_eq!(entry.tunnels().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn only_tunnels_idle_for_long_enough_expire() {
    let mut entry = entry(10);
    let idle = Duration::from_secs(300);
    entry.dial_succeeded(FakeTunnel::new("old", 10));
    entry.dial_succeeded(FakeTunnel::full("used", 10));
    tokio::time::advance(Duration::from_secs(100)).await;
    entry.dial_succeeded(FakeTunnel::new("young", 10));
    tokio::time::advance(Duration::from_secs(199)).await;
    assert_eq!(entry.expire(Instant::now(), idle).len(), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    let gone: Vec<_> = entry.expire(Instant::now(), idle).iter().map(|fake| fake.0.name).collect();
    assert_eq!(gone, ["old"]);
    assert!(!entry.retire());
}

#[tokio::test(start_paused = true)]
async fn entry_retires_only_when_empty() {
    let mut entry = entry(10);
    checkout(&mut entry, 0);
    assert!(!entry.retire(), "a dial is in progress");
    assert!(entry.dial_failed().is_empty());
    assert!(entry.retire());
    assert_eq!(checkout(&mut entry, 1), "retired");
}

#[tokio::test(start_paused = true)]
async fn tunnels_added_while_others_were_full_expire_afterwards() {
    let mut entry = TestEntry::new(LoadPolicy { streams_per_tunnel: 10, busy_streams: 4 });
    let (a, b) = (FakeTunnel::full("a", 10), FakeTunnel::new("b", 10));
    entry.dial_succeeded(a.clone());
    entry.dial_succeeded(b.clone());
    assert_eq!(checkout(&mut entry, 0), "use b");
    for active in [&a, &b] {
        active.0.active.set(0);
    }
    let idle = Duration::from_secs(300);
    for caller in 1..4 {
        tokio::time::advance(idle / 3).await;
        assert_eq!(checkout(&mut entry, caller), "use a");
        a.0.active.set(0);
        a.0.idle_since.set(Instant::now());
    }
    let gone: Vec<_> = entry.expire(Instant::now(), idle).iter().map(|fake| fake.0.name).collect();
    assert_eq!(gone, ["b"]);
}
