//! Random sequences of callers, dials and ends of tunnels: each caller gets a stream, an error or a dial of its own.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use isthmus_kit::random::sequences;

use super::*;

#[derive(Clone)]
struct Counted(Rc<(usize, Cell<usize>, Cell<bool>)>);

impl Counted {
    fn new(limit: usize) -> Self {
        Self(Rc::new((limit, Cell::new(0), Cell::new(true))))
    }
}

impl PooledTunnel for Counted {
    type Permit = ();
    fn is_alive(&self) -> bool {
        self.0.2.get()
    }
    fn active(&self) -> usize {
        self.0.1.get()
    }
    fn idle_since(&self) -> Option<Instant> {
        None
    }
    fn reserve(&self) -> Option<()> {
        let room = self.is_alive() && self.active() < self.0.0;
        room.then(|| self.0.1.set(self.active() + 1))
    }
}

/// What became of the callers, as the pool's own code would do it.
struct Callers {
    entry: Entry<Counted, u32>,
    waiting: BTreeSet<u32>,
    dialling: Vec<u32>,
    open: Vec<Counted>,
}

impl Callers {
    fn checkout(&mut self, caller: u32) {
        match self.entry.checkout(|| caller) {
            Checkout::Use(tunnel, ()) => {
                assert!(tunnel.is_alive(), "a stream of a tunnel that has ended");
                self.open.push(tunnel);
            }
            Checkout::Dial => self.dialling.push(caller),
            Checkout::Wait => assert!(self.waiting.insert(caller)),
            Checkout::Retired => panic!("nobody retired it"),
        }
    }

    fn dials(&mut self, next: Option<u32>) {
        if let Some(caller) = next {
            assert!(self.waiting.remove(&caller), "{caller} does not wait");
            self.dialling.push(caller);
        }
    }

    fn succeed(&mut self, tunnel: Counted) {
        // The dialler's own stream is first; a peer may allow none.
        if tunnel.reserve().is_some() {
            self.open.push(tunnel.clone());
        }
        self.entry.dial_succeeded(tunnel);
        while let Some((caller, tunnel, ())) = self.entry.next_grant() {
            assert!(self.waiting.remove(&caller), "{caller} does not wait");
            self.open.push(tunnel);
        }
        let next = self.entry.next_dialler();
        self.dials(next);
    }

    /// Whoever waits is served by a dial that is in progress.
    fn check(&self, streams: usize) {
        assert_eq!(self.waiting.len(), self.entry.waiting.len());
        assert_eq!(self.dialling.len(), self.entry.dials);
        assert!(
            self.waiting.len() <= self.dialling.len() * (streams - 1),
            "{} wait for {} dials",
            self.waiting.len(),
            self.dialling.len()
        );
    }
}

#[test]
fn random_events_leave_no_caller_waiting_for_a_dial_that_nobody_makes() {
    sequences(500, |random| {
        let streams = random.usize(1..6);
        let policy = LoadPolicy { streams_per_tunnel: streams, busy_streams: random.usize(..4) };
        let (waiting, dialling, open) = (BTreeSet::new(), Vec::new(), Vec::new());
        let mut callers = Callers { entry: Entry::new(policy), waiting, dialling, open };
        for caller in 0..random.u32(1..200) {
            match random.u8(..12) {
                0..6 => callers.checkout(caller),
                6..11 if callers.dialling.is_empty() => {}
                6..8 => {
                    callers.dialling.swap_remove(random.usize(..callers.dialling.len()));
                    callers.succeed(Counted::new(random.usize(..=streams)));
                }
                8 => {
                    callers.dialling.swap_remove(random.usize(..callers.dialling.len()));
                    for failed in callers.entry.dial_failed() {
                        assert!(callers.waiting.remove(&failed), "{failed} does not wait");
                    }
                }
                9..11 => {
                    callers.dialling.swap_remove(random.usize(..callers.dialling.len()));
                    let next = callers.entry.dial_abandoned();
                    callers.dials(next);
                }
                _ if !callers.open.is_empty() => {
                    let tunnel = callers.open.swap_remove(random.usize(..callers.open.len()));
                    match random.bool() {
                        true => tunnel.0.1.set(tunnel.active() - 1),
                        false => tunnel.0.2.set(false),
                    }
                }
                _ => {}
            }
            callers.check(streams);
        }
        while callers.dialling.pop().is_some() {
            callers.succeed(Counted::new(streams));
            callers.check(streams);
        }
        assert!(callers.waiting.is_empty());
        callers.entry.remove(|_| true);
        assert!(callers.entry.retire(), "it is kept for nobody");
    });
}
