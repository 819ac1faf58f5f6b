//! Orders of events that matter, as tables.

use std::cell::Cell;
use std::rc::Rc;

use super::*;

/// A tunnel that only counts.
#[derive(Clone)]
struct Fake(Rc<State>);

struct State {
    name: &'static str,
    limit: Cell<usize>,
    active: Cell<usize>,
    alive: Cell<bool>,
    idle_since: Cell<Instant>,
    busy: Cell<u64>,
}

impl Fake {
    fn new(name: &'static str, limit: usize) -> Self {
        Self(Rc::new(State {
            name,
            limit: Cell::new(limit),
            active: Cell::new(0),
            alive: Cell::new(true),
            idle_since: Cell::new(Instant::now()),
            busy: Cell::new(0),
        }))
    }

    fn full(name: &'static str, limit: usize) -> Self {
        let fake = Self::new(name, limit);
        fake.0.active.set(limit);
        fake
    }
}

impl Member for Fake {
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
    fn busy(&self) -> u64 {
        self.0.busy.get()
    }
    fn reserve(&self) -> Option<()> {
        let room = self.active() < self.0.limit.get();
        room.then(|| self.0.active.set(self.active() + 1))
    }
}

type TestEntry = Entry<Fake, u32>;

/// An entry that opens no tunnel before all are full.
fn frugal(per_tunnel: usize) -> TestEntry {
    TestEntry::new(Spread { per_tunnel, tunnels: 1, calm_streams: 0, calm_share: 500 })
}

/// What a checkout said, as text.
fn ask(entry: &mut TestEntry, waiter: u32) -> String {
    match entry.checkout(Instant::now(), || waiter) {
        Checkout::Use(fake, ()) => format!("use {}", fake.0.name),
        Checkout::Grow(fake, ()) => format!("use {} and dial", fake.0.name),
        Checkout::Dial => "dial".to_owned(),
        Checkout::Wait => "wait".to_owned(),
        Checkout::Retired => "retired".to_owned(),
    }
}

fn granted(entry: &mut TestEntry) -> Vec<u32> {
    std::iter::from_fn(|| entry.grant().map(|(waiter, ..)| waiter)).collect()
}

#[tokio::test(start_paused = true)]
async fn one_dials_the_others_wait_for_it() {
    let mut entry = frugal(4);
    let said: Vec<_> = (0..6).map(|caller| ask(&mut entry, caller)).collect();
    // The fifth would find the first tunnel full, so it dials a second one.
    assert_eq!(said, ["dial", "wait", "wait", "wait", "dial", "wait"]);
    let fake = Fake::new("a", 4);
    fake.reserve().unwrap();
    entry.dialed(fake);
    assert_eq!(granted(&mut entry), [1, 2, 3]);
    let fake = Fake::new("b", 4);
    fake.reserve().unwrap();
    entry.dialed(fake);
    assert_eq!(granted(&mut entry), [5]);
    assert_eq!(ask(&mut entry, 6), "use b");
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_is_told_to_everyone_it_would_have_carried() {
    let mut entry = frugal(3);
    for caller in 0..5 {
        ask(&mut entry, caller);
    }
    // Two dials (0 and 3) carry 1, 2 and 4; the one that is left carries two.
    assert_eq!(entry.failed(), [1]);
    assert_eq!(entry.failed(), [2, 4]);
    assert_eq!(ask(&mut entry, 9), "dial");
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_dial_is_taken_over_by_the_longest_waiting() {
    let mut entry = frugal(100);
    let said: Vec<_> = (0..3).map(|caller| ask(&mut entry, caller)).collect();
    assert_eq!(said, ["dial", "wait", "wait"]);
    assert_eq!(entry.abandoned(), Some(1));
    assert_eq!(ask(&mut entry, 3), "wait");
    assert_eq!(entry.abandoned(), Some(2));
    assert_eq!(entry.abandoned(), Some(3));
    assert_eq!(entry.abandoned(), None);
    assert_eq!(ask(&mut entry, 4), "dial");
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_carries_less_than_expected_leaves_nobody_behind() {
    let mut entry = frugal(100);
    let said: Vec<_> = (0..4).map(|caller| ask(&mut entry, caller)).collect();
    assert_eq!(said, ["dial", "wait", "wait", "wait"]);
    let small = Fake::new("small", 2);
    small.reserve().unwrap();
    entry.dialed(small);
    assert_eq!(granted(&mut entry), [1]);
    assert_eq!(entry.next_dialler(), Some(2));
    assert_eq!(entry.next_dialler(), None, "the new dial carries the last one");
}

#[tokio::test(start_paused = true)]
async fn a_full_tunnel_is_used_again_when_it_empties() {
    let mut entry = frugal(2);
    let full = Fake::full("a", 2);
    entry.dialed(full.clone());
    assert_eq!(ask(&mut entry, 0), "dial");
    full.0.active.set(1);
    assert_eq!(ask(&mut entry, 1), "use a");
}

#[tokio::test(start_paused = true)]
async fn dead_tunnels_are_skipped_and_the_least_loaded_is_used() {
    let mut entry = frugal(10);
    let (dead, busy, quiet) = (Fake::new("dead", 10), Fake::new("busy", 10), Fake::new("quiet", 10));
    dead.0.alive.set(false);
    busy.0.active.set(5);
    quiet.0.active.set(2);
    for fake in [dead, busy, quiet] {
        entry.dialed(fake);
    }
    assert_eq!(ask(&mut entry, 0), "use quiet");
    assert_eq!(entry.members().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn only_what_is_idle_for_long_expires() {
    let mut entry = frugal(10);
    let idle = Duration::from_secs(300);
    entry.dialed(Fake::new("old", 10));
    entry.dialed(Fake::full("used", 10));
    tokio::time::advance(Duration::from_secs(100)).await;
    entry.dialed(Fake::new("young", 10));
    tokio::time::advance(Duration::from_secs(199)).await;
    assert_eq!(entry.expire(Instant::now(), idle).len(), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    let gone: Vec<_> = entry.expire(Instant::now(), idle).iter().map(|fake| fake.0.name).collect();
    assert_eq!(gone, ["old"]);
    assert!(!entry.retire());
}

#[tokio::test(start_paused = true)]
async fn an_entry_retires_only_when_nothing_is_left() {
    let mut entry = frugal(10);
    ask(&mut entry, 0);
    assert!(!entry.retire(), "a dial is under way");
    assert!(entry.failed().is_empty());
    assert!(entry.retire());
    assert_eq!(ask(&mut entry, 1), "retired");
}

/// An entry that may open up to three tunnels because of load.
fn spreading() -> (TestEntry, [Fake; 3]) {
    let entry = TestEntry::new(Spread { per_tunnel: 10, tunnels: 3, calm_streams: 4, calm_share: 500 });
    (entry, ["a", "b", "c"].map(|name| Fake::new(name, 10)))
}

#[tokio::test(start_paused = true)]
async fn a_busy_tunnel_gets_another_beside_it_and_up_to_so_many() {
    let (mut entry, [a, b, c]) = spreading();
    entry.dialed(a.clone());
    assert_eq!(ask(&mut entry, 0), "use a");
    a.0.busy.set(500);
    assert_eq!(ask(&mut entry, 1), "use a and dial");
    assert_eq!(ask(&mut entry, 2), "use a", "one dial at a time");
    entry.dialed(b.clone());
    assert_eq!(ask(&mut entry, 3), "use b");
    b.0.busy.set(900);
    assert_eq!(ask(&mut entry, 4), "use a and dial", "the less busy one");
    entry.dialed(c.clone());
    c.0.busy.set(900);
    assert_eq!(ask(&mut entry, 5), "use a", "there are enough");
    a.0.busy.set(10);
    b.0.busy.set(10);
    for _ in 0..4 {
        a.reserve().unwrap();
    }
    assert_eq!(ask(&mut entry, 6), "use b", "a has an easy time no more");
}

#[tokio::test(start_paused = true)]
async fn many_streams_are_load_too() {
    let (mut entry, [a, b, _]) = spreading();
    entry.dialed(a);
    let said: Vec<_> = (0..6).map(|caller| ask(&mut entry, caller)).collect();
    assert_eq!(said, ["use a", "use a", "use a", "use a", "use a and dial", "use a"]);
    entry.dialed(b);
    assert_eq!(ask(&mut entry, 7), "use b");
}

#[tokio::test(start_paused = true)]
async fn those_who_come_at_once_are_spread_from_the_start() {
    let (mut entry, _) = spreading();
    let said: Vec<_> = (0..14).map(|caller| ask(&mut entry, caller)).collect();
    assert_eq!(said.iter().filter(|said| *said == "dial").count(), 3, "{said:?}");
}

#[tokio::test(start_paused = true)]
async fn what_load_opened_is_left_without_streams_when_it_is_over() {
    let (mut entry, [a, b, _]) = spreading();
    entry.dialed(a.clone());
    entry.dialed(b.clone());
    a.0.busy.set(800);
    assert_eq!(ask(&mut entry, 0), "use b");
    a.0.busy.set(20);
    b.0.active.set(0);
    let idle = Duration::from_secs(300);
    for caller in 1..4 {
        tokio::time::advance(idle / 3).await;
        assert_eq!(ask(&mut entry, caller), "use a");
        a.0.active.set(0);
        a.0.idle_since.set(Instant::now());
    }
    let gone: Vec<_> = entry.expire(Instant::now(), idle).iter().map(|fake| fake.0.name).collect();
    assert_eq!(gone, ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_for_load_that_cannot_be_had_is_not_asked_for_again_at_once() {
    let (mut entry, [a, ..]) = spreading();
    entry.dialed(a.clone());
    a.0.busy.set(700);
    assert_eq!(ask(&mut entry, 0), "use a and dial");
    assert!(entry.failed().is_empty());
    entry.cannot_grow(Instant::now());
    assert_eq!(ask(&mut entry, 1), "use a");
    tokio::time::advance(PAUSE).await;
    assert_eq!(ask(&mut entry, 2), "use a and dial");
    // Those who find no room wait for it meanwhile, and are told.
    a.0.active.set(10);
    assert_eq!(ask(&mut entry, 3), "wait");
    assert_eq!(entry.failed(), [3]);
}
