//! Turns at the processor: pods share the threads of the data plane fairly, however many connections each of them has.
//!
//! A runtime runs tasks in the order in which they were woken, so a pod with a thousand busy connections is a thousand
//! times ahead of its neighbour with one. Here every pod has credit, which its connections spend as they run. One whose
//! pod has none left waits in the pod's own queue, where it costs the others nothing, for the next round. A round ends
//! when the runtime has nothing else to do or has polled a few dozen other tasks: then every pod has credit again. What
//! was spent beyond the credit is owed. So a connection that is woken waits for one share of each pod that is busy at
//! most, and for nobody's queue. While only one pod is active nobody is owed anything, and nobody waits; and neither does
//! a pod with a few connections, however much they carry.
//!
//! That is no help when the whole machine is behind, since then a thread that is woken waits, too, in every process. How
//! far behind it is shows in how late timers are. The pod that uses most is given new connections at a pace that lets the
//! machine catch up (see [`pace`]); those that it has go on.
//!
//! Who may run when is decided in [`rounds`], without a clock or a task.

mod pace;
mod rounds;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use isthmus_rt::task::Tasks;
use tokio::sync::Notify;
use tokio::task::yield_now;

use self::pace::{HELD, Pace, TICK};
use self::rounds::{Account, Rounds};

/// The turns of a process. Clones share them.
#[derive(Clone)]
pub struct Turns(Arc<Shared>);

struct Shared {
    rounds: Mutex<Rounds<Waker>>,
    /// Somebody waits.
    wanted: Arc<Notify>,
    /// Begins the rounds, once the first pod is there: before, there may be no runtime.
    keeper: Mutex<Option<Tasks>>,
    pace: Pace,
    /// Somebody floods us: timers are to be watched.
    flooded: Arc<Notify>,
    now: fn() -> Instant,
    began: Instant,
}

/// A pod's share.
pub(crate) struct Share {
    account: Arc<Account>,
    shared: Arc<Shared>,
    /// Until when it is held to the pace, in milliseconds.
    held: AtomicU64,
}

/// A future that takes turns, and whether it waits for one now.
struct Turn<'a> {
    share: &'a Share,
    waits: Option<u64>,
}

// === impl Turns ===

impl Default for Turns {
    fn default() -> Self {
        Self::with_clock(Instant::now)
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Turns {
    fn with_clock(now: fn() -> Instant) -> Self {
        let (rounds, wanted, keeper) = (Mutex::default(), Arc::default(), Mutex::default());
        let (pace, flooded) = (Pace::default(), Arc::default());
        Self(Arc::new(Shared { rounds, wanted, keeper, pace, flooded, now, began: now() }))
    }

    /// The share of one more pod. Must be called inside the runtime whose threads are shared.
    pub(crate) fn share(&self) -> Arc<Share> {
        let mut keeper = self.0.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        keeper.get_or_insert_with(|| {
            let tasks = Tasks::new("turns");
            tasks.spawn("turns", keep_round(Arc::downgrade(&self.0), Arc::clone(&self.0.wanted)));
            tasks.spawn("timers", watch_timers(Arc::downgrade(&self.0), Arc::clone(&self.0.flooded)));
            tasks
        });
        Arc::new(Share { account: self.0.lock().open(), shared: Arc::clone(&self.0), held: 0.into() })
    }
}

/// Ends a round whenever somebody waits and everybody who does not has had a turn.
async fn keep_round(turns: Weak<Shared>, wanted: Arc<Notify>) {
    loop {
        wanted.notified().await;
        loop {
            // Behind everything that could run now.
            yield_now().await;
            let Some(turns) = turns.upgrade() else { return };
            let now = turns.millis((turns.now)());
            let (woken, is_over) = turns.lock().next(now);
            woken.into_iter().for_each(Waker::wake);
            if is_over {
                break;
            }
        }
    }
}

/// Looks how late timers are, from when somebody floods us until there is no pause any more.
async fn watch_timers(turns: Weak<Shared>, flooded: Arc<Notify>) {
    loop {
        flooded.notified().await;
        loop {
            let begun = Instant::now();
            tokio::time::sleep(TICK).await;
            let Some(turns) = turns.upgrade() else { return };
            if turns.pace.timer_took(begun.elapsed()).is_zero() {
                break;
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Rounds<Waker>> {
        // Nothing panics while a round is half done.
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }
}

// === impl Share ===

impl Share {
    /// The same for a task of its own.
    pub(crate) fn run<F: Future>(self: &Arc<Self>, future: F) -> impl Future<Output = F::Output> + use<F> {
        let share = Arc::clone(self);
        async move { share.spend(future).await }
    }

    /// Waits until the pod may have one more connection: a while, when it floods us and the machine is behind.
    pub(crate) async fn pace(&self) {
        let now = self.shared.millis((self.shared.now)());
        if self.account.is_flooding(now) {
            self.held.store(now + HELD, Ordering::Relaxed);
        } else if self.held.load(Ordering::Relaxed) <= now {
            return;
        }
        self.shared.flooded.notify_one();
        let pause = self.shared.pace.pause();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// Runs a future on the pod's share.
    pub(crate) async fn spend<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        self.account.join();
        let mut turn = Turn { share: self, waits: None };
        poll_fn(move |cx| turn.poll(cx, |cx| future.as_mut().poll(cx))).await
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let woken = self.shared.lock().close(&self.account);
        woken.into_iter().for_each(Waker::wake);
    }
}

// === impl Turn ===

impl Turn<'_> {
    fn poll<T>(&mut self, cx: &mut Context<'_>, run: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let now = self.share.shared.now;
        let begun = now();
        if !self.take(cx.waker(), begun) {
            return Poll::Pending;
        }
        let polled = run(cx);
        self.share.account.spend(now() - begun);
        polled
    }

    fn take(&mut self, waker: &Waker, now: Instant) -> bool {
        let Share { account, shared, .. } = self.share;
        let now = shared.millis(now);
        if self.waits.is_none() && account.may_run(now) {
            return true;
        }
        let mut rounds = shared.lock();
        let is_turn = match self.waits {
            Some(number) => rounds.has_turn(account, number, waker),
            None => match rounds.enter(account, now, waker) {
                Ok(()) => true,
                Err(number) => {
                    self.waits = Some(number);
                    false
                }
            },
        };
        drop(rounds);
        match is_turn {
            true => self.waits = None,
            false => shared.wanted.notify_one(),
        }
        is_turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.share.account.part();
        if let Some(number) = self.waits {
            self.share.shared.lock().leave(&self.share.account, number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::*;

    thread_local! {
        /// When it is, for who asks [`clock`].
        static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
    }

    fn clock() -> Instant {
        NOW.get().unwrap_or_else(|| {
            NOW.set(Some(Instant::now()));
            clock()
        })
    }

    /// A pod that has many connections and has spent all there is, and more.
    fn exhaust(share: &Share) {
        (0..100).for_each(|_| share.account.join());
        (0..50).for_each(|_| share.account.spend(Duration::from_secs(1)));
    }

    type Done = Arc<Mutex<Vec<&'static str>>>;

    /// Some work in ten pieces that keep the thread for a while; notes each.
    async fn work(name: &'static str, done: Done) {
        for _ in 0..10 {
            NOW.set(Some(clock() + Duration::from_micros(300)));
            done.lock().unwrap().push(name);
            yield_now().await;
        }
    }

    /// How many pieces of the flood's work are done before the neighbour's next one, at most.
    async fn longest_wait(flood: usize, is_fair: bool) -> usize {
        let turns = Turns::with_clock(clock);
        let (busy, calm) = (turns.share(), turns.share());
        let (done, tasks) = (Done::default(), Tasks::new("test"));
        let start = |share: &Arc<Share>, name| {
            let work = work(name, Arc::clone(&done));
            match is_fair {
                true => tasks.spawn("work", share.run(work)),
                false => tasks.spawn("work", work),
            };
        };
        exhaust(&busy);
        start(&calm, "neighbour");
        (0..flood).for_each(|_| start(&busy, "flood"));
        tasks.wait().await;
        let done = done.lock().unwrap();
        assert_eq!(done.len(), (flood + 1) * 10);
        let last = done.iter().rposition(|name| *name == "neighbour").unwrap();
        // What the flood does after the neighbour's last piece nobody waits for.
        done[..last].split(|name| *name == "neighbour").map(<[_]>::len).max().unwrap()
    }

    #[tokio::test]
    async fn a_neighbour_waits_for_one_share_and_not_for_everybody() {
        let waits = longest_wait(100, false).await;
        assert!(waits >= 50, "the control: {waits}");
        let waits = longest_wait(100, true).await;
        assert!(waits <= 3, "{waits}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_floods_gets_new_connections_no_faster_than_the_machine_can_follow() {
        let turns = Turns::with_clock(clock);
        let (busy, calm) = (turns.share(), turns.share());
        let paces = async |share: &Share| {
            let begun = tokio::time::Instant::now();
            share.pace().await;
            begun.elapsed()
        };
        let later = |time| NOW.set(Some(clock() + time));
        let slow = || while turns.0.pace.timer_took(TICK * 10) < pace::SLOWEST {};
        later(Duration::from_millis(200));
        calm.spend(async {}).await;
        exhaust(&busy);
        later(Duration::from_millis(200));
        calm.spend(async {}).await;
        busy.spend(async {}).await;
        assert_eq!(paces(&busy).await, Duration::ZERO, "timers are not late");
        slow();
        assert_eq!(paces(&busy).await, pace::SLOWEST);
        assert_eq!(paces(&calm).await, Duration::ZERO);
        later(Duration::from_secs(1));
        slow();
        assert!(!busy.account.is_flooding(turns.0.millis(clock())));
        assert_eq!(paces(&busy).await, pace::SLOWEST, "held back, it looks calm");
        later(Duration::from_millis(HELD));
        assert_eq!(paces(&busy).await, Duration::ZERO, "it has been calm for long enough");
    }

    #[tokio::test]
    async fn what_waits_and_is_given_up_holds_nobody_up() {
        let turns = Turns::with_clock(clock);
        let (one, other) = (turns.share(), turns.share());
        other.spend(async {}).await;
        exhaust(&one);
        tokio::select! {
            biased;
            () = one.spend(async {}) => panic!("it has nothing to spend"),
            () = std::future::ready(()) => {}
        }
        one.spend(async {}).await;
    }
}
