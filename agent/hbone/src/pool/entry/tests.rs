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
}

impl Fake {
    fn new(name: &'static str, limit: usize) -> Self {
        Self(Rc::new(State {
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
    fn reserve(&self) -> Option<()> {
        let room = self.active() < self.0.limit.get();
        room.then(|| self.0.active.set(self.active() + 1))
    }
}

type TestEntry = Entry<Fake, u32>;

/// What a checkout said, as text.
fn ask(entry: &mut TestEntry, waiter: u32) -> String {
    match entry.checkout(|| waiter) {
        Checkout::Use(fake, ()) => format!("use {}", fake.0.name),
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
    let mut entry = TestEntry::new(4);
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
    let mut entry = TestEntry::new(3);
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
    let mut entry = TestEntry::new(100);
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
    let mut entry = TestEntry::new(100);
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
    let mut entry = TestEntry::new(2);
    let full = Fake::full("a", 2);
    entry.dialed(full.clone());
    assert_eq!(ask(&mut entry, 0), "dial");
    full.0.active.set(1);
    assert_eq!(ask(&mut entry, 1), "use a");
}

#[tokio::test(start_paused = true)]
async fn dead_tunnels_are_skipped_and_the_least_loaded_is_used() {
    let mut entry = TestEntry::new(10);
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
    let mut entry = TestEntry::new(10);
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
    let mut entry = TestEntry::new(10);
    ask(&mut entry, 0);
    assert!(!entry.retire(), "a dial is under way");
    assert!(entry.failed().is_empty());
    assert!(entry.retire());
    assert_eq!(ask(&mut entry, 1), "retired");
}
