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
//! far behind it is shows in how long a round takes, and in how late a timer is. The pod that uses most is given new
//! connections at a pace that lets it catch up; those that it has go on.
//!
//! Who may run when is decided in [`rounds`], without a clock or a task.

mod rounds;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use isthmus_rt::task::Tasks;
use tokio::sync::Notify;
use tokio::task::yield_now;

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
    /// How far behind the machine is, in nanoseconds.
    lag: AtomicU64,
    /// How long a new connection of a pod that floods us waits because timers are late, in nanoseconds.
    pause: AtomicU64,
    /// Somebody floods us: timers are to be watched.
    flooded: Arc<Notify>,
    now: fn() -> Instant,
    began: Instant,
}

/// A machine that is no further behind than this is not behind.
const PROMPT: Duration = Duration::from_micros(300);
/// So many times as long a new connection of the pod that floods us waits, so that most of the time is left to others;
const PACE: u32 = 4;
/// but no longer than this.
const SLOWEST: Duration = Duration::from_millis(20);

/// How often timers are looked at while somebody floods us.
const TICK: Duration = Duration::from_millis(2);
/// The runtime rounds deadlines and the kernel's wait up to the next millisecond each.
const EXACT: Duration = Duration::from_millis(2);
/// A timer that is later than this says that whatever is woken on this machine waits.
const LATE: Duration = Duration::from_micros(500);
/// The first pause. It is doubled each time that a timer is late, and shrinks slowly when they are not.
const FIRST: Duration = Duration::from_micros(500);
/// How long a pod is held to the pace after it was last seen to flood us, in milliseconds: held back, it looks calm.
const HELD: u64 = 10_000;

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
        let (lag, pause, flooded) = (0.into(), 0.into(), Arc::default());
        Self(Arc::new(Shared { rounds, wanted, keeper, lag, pause, flooded, now, began: now() }))
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
            let begun = Instant::now();
            // Behind everything that could run now.
            yield_now().await;
            let Some(turns) = turns.upgrade() else { return };
            turns.note_lag(begun.elapsed());
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
            if turns.note_timer(begun.elapsed().saturating_sub(TICK + EXACT)).is_zero() {
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

    /// The worst of late: it is believed at once and forgotten slowly.
    fn note_lag(&self, lag: Duration) {
        let lag = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
        let known = self.lag.load(Ordering::Relaxed);
        self.lag.store(lag.max(known - known / 16), Ordering::Relaxed);
    }

    /// A timer was so late; the pause that there is from now on.
    fn note_timer(&self, late: Duration) -> Duration {
        let known = Duration::from_nanos(self.pause.load(Ordering::Relaxed));
        let pause = match late > LATE {
            true => (known * 2).clamp(FIRST, SLOWEST),
            false if known < FIRST / 8 => Duration::ZERO,
            false => known - known / 32,
        };
        self.pause.store(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        pause
    }

    fn lag(&self) -> Duration {
        Duration::from_nanos(self.lag.load(Ordering::Relaxed))
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
        let lag = self.shared.lag();
        let behind = if lag > PROMPT { lag * PACE } else { Duration::ZERO };
        let pause = Duration::from_nanos(self.shared.pause.load(Ordering::Relaxed)).max(behind).min(SLOWEST);
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

    /// How long a new connection of the pod waits.
    async fn paces(share: &Share) -> Duration {
        let begun = tokio::time::Instant::now();
        share.pace().await;
        begun.elapsed()
    }

    fn later(time: Duration) {
        NOW.set(Some(clock() + time));
    }

    /// Makes `busy` the one that floods.
    async fn flood(busy: &Share, calm: &Share) {
        later(Duration::from_millis(200));
        calm.spend(async {}).await;
        exhaust(busy);
        later(Duration::from_millis(200));
        calm.spend(async {}).await;
        busy.spend(async {}).await;
    }

    #[tokio::test(start_paused = true)]
    async fn late_timers_hold_back_who_floods_for_a_while_and_nobody_else() {
        let turns = Turns::with_clock(clock);
        let (busy, calm) = (turns.share(), turns.share());
        flood(&busy, &calm).await;
        assert_eq!(paces(&busy).await, Duration::ZERO, "timers are not late");
        for _ in 0..4 {
            turns.0.note_timer(LATE * 2);
        }
        let pace = paces(&busy).await;
        assert!(pace >= FIRST * 8 && pace <= FIRST * 8 + EXACT, "{pace:?}");
        assert_eq!(paces(&calm).await, Duration::ZERO);
        later(Duration::from_secs(1));
        assert!(!busy.account.is_flooding(turns.0.millis(clock())));
        assert!(paces(&busy).await >= FIRST * 6, "held back, it looks calm");
        for _ in 0..100 {
            turns.0.note_timer(LATE * 2);
        }
        assert_eq!(paces(&busy).await, SLOWEST);
        later(Duration::from_millis(HELD));
        assert_eq!(paces(&busy).await, Duration::ZERO, "it has been calm for long enough");
        let forgotten = std::iter::repeat_with(|| turns.0.note_timer(Duration::ZERO)).take(1_000);
        assert!(forgotten.into_iter().any(|pause| pause.is_zero()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_floods_gets_new_connections_no_faster_than_the_machine_can_follow() {
        let turns = Turns::with_clock(clock);
        let (busy, calm) = (turns.share(), turns.share());
        flood(&busy, &calm).await;
        turns.0.note_lag(Duration::from_millis(4));
        let pace = paces(&busy).await;
        assert!(pace >= Duration::from_millis(16) && pace <= SLOWEST, "{pace:?}");
        assert_eq!(paces(&calm).await, Duration::ZERO);
        turns.0.note_lag(Duration::from_secs(1));
        assert_eq!(paces(&busy).await, SLOWEST);
        for _ in 0..200 {
            turns.0.note_lag(Duration::ZERO);
        }
        assert_eq!(paces(&busy).await, Duration::ZERO, "the machine has caught up");
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
