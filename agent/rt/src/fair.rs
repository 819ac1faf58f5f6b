//! Fair scheduling of CPU time between tenants: in the agent a tenant is a pod, and everything that runs on a pod's
//! behalf runs on the pod's [`Share`].
//!
//! tokio runs tasks in the order in which they were woken, so a tenant with a thousand busy tasks gets a thousand times
//! the CPU time of a neighbour with one. [`FairScheduler`] is deficit round robin (Shreedhar and Varghese, "Efficient
//! Fair Queuing using Deficit Round Robin", SIGCOMM 1995) over tenants, where the packet is one poll of a task and its
//! length is the time that it took. Each tenant may spend one [`QUANTUM`] of CPU time per round. A task that is polled
//! after its tenant has spent it is not run: its waker goes to the tenant's own queue, where it delays no other tenant,
//! until the next round.
//!
//! As in every fair queue, a round ends when each active tenant has spent its quantum or has nothing to run. tokio does
//! not tell which tasks are runnable, so this is seen from two sides. The waker that a task is polled with marks its
//! tenant as runnable before it wakes the task, and a poll leaves a mark, too. And while a tenant waits, a keeper task
//! yields to the runtime, which polls it again once the thread has run out of tasks or has reached its event interval,
//! and has polled the I/O driver. If no tenant with credit has a mark then, the round is over: the thread is idle but for
//! the tenants that wait. So the scheduler is work-conserving, and a task
//! that is woken waits for at most one quantum (plus the poll that exceeds it) of every other active tenant. A tenant that is
//! active alone never waits: its next round starts when it has spent its quantum.
//!
//! Each data thread has rounds, credits and a queue of its own, so that nothing here is contended; a tenant's account is
//! the sum over the threads, and admission judges that sum.
//!
//! Cost of an undisturbed poll: two clock reads (the length of a poll has no cheaper measure), and on a cache line of the
//! tenant's own a few relaxed loads and stores and one relaxed `fetch_sub`. The lock is taken when a tenant becomes
//! active, has spent its quantum, or has a queue.
//!
//! This module knows neither what a tenant is nor what its tasks do. `run_queue` is the algorithm, without a clock or a
//! runtime; `admission` is a policy of its own, which paces new connections while the whole machine is behind.

mod admission;
mod run_queue;

use std::fmt;
use std::future::{Future, poll_fn};
use std::num::NonZero;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio_util::task::AbortOnDropHandle;

use self::admission::{AdmissionPacing, FloodDetector, SAMPLE_INTERVAL};
pub use self::run_queue::QUANTUM;
use self::run_queue::{Charged, CpuCredit, RunQueue, Ticket};
use crate::spawn::spawn;
use crate::threads::{PerThread, Thread, Threads};

/// Divides the CPU time of the data threads fairly between tenants. One per process; clones are handles to the same
/// scheduler.
#[derive(Clone)]
pub struct FairScheduler(Arc<Scheduler>);

struct Scheduler {
    queues: PerThread<Arc<ThreadQueue>>,
    /// `None`: the runtime on which the first share is made.
    threads: Option<Threads>,
    started: Instant,
    now: fn() -> Instant,
    /// What the process may use of them.
    cpus: u32,
}

/// The scheduler of one thread.
struct ThreadQueue {
    queue: Mutex<RunQueue<Waker>>,
    /// A tenant waits for the end of the round.
    stalled: Arc<Notify>,
    /// A flooding tenant asks for admission: timers are to be sampled.
    flooded: Arc<Notify>,
    admission: AdmissionPacing,
    /// The keeper and the timer sampler. Started with the first share, since there may be no runtime before.
    background: Mutex<Option<[AbortOnDropHandle<()>; 2]>>,
    now: fn() -> Instant,
}

/// A tenant's share of the CPU time; in the agent one per pod. Whatever runs for the tenant is spawned through
/// [`Tasks::on`](crate::task::Tasks::on) or wrapped in [`Share::run`], once: nested, it would be charged twice.
pub struct Share {
    threads: PerThread<Arc<ThreadShare>>,
    flood: FloodDetector,
    scheduler: Arc<Scheduler>,
}

/// A tenant's share of one thread.
struct ThreadShare {
    credit: Arc<CpuCredit>,
    queue: Arc<ThreadQueue>,
}

/// What decides before each poll of a future whether it may run.
struct Gate {
    share: Arc<ThreadShare>,
    turn: Turn,
    /// The waker that the task was polled with last, and the one that the future was given in its place.
    waker: Option<(Waker, Waker)>,
}

#[derive(Clone, Copy)]
enum Turn {
    /// Not in the queue.
    None,
    /// In the queue, or released from it since.
    Queued(Ticket),
    /// Released from the queue, and run.
    Released,
}

/// Marks the tenant as runnable, then wakes the task. It holds no [`ThreadShare`]: that could be dropped with the waker,
/// under the lock that dropping it takes.
struct MarkingWaker {
    task: Waker,
    credit: Arc<CpuCredit>,
    queue: Arc<ThreadQueue>,
}

// === impl FairScheduler ===

/// For the runtime on which the first share is made, as the only thread.
impl Default for FairScheduler {
    fn default() -> Self {
        Self::with_clock(Instant::now)
    }
}

impl fmt::Debug for FairScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FairScheduler").finish_non_exhaustive()
    }
}

impl FairScheduler {
    /// For these threads.
    #[must_use]
    pub fn new(threads: &Threads) -> Self {
        let queues = PerThread::with_compute(threads, |_| Arc::new(ThreadQueue::new(Instant::now)));
        Self::over(queues, Some(threads.clone()), Instant::now)
    }

    fn with_clock(now: fn() -> Instant) -> Self {
        Self::over(PerThread::single(Arc::new(ThreadQueue::new(now))), None, now)
    }

    fn over(queues: PerThread<Arc<ThreadQueue>>, threads: Option<Threads>, now: fn() -> Instant) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
        Self(Arc::new(Scheduler { queues, threads, started: now(), now, cpus }))
    }

    /// The share of one more tenant. Must be called inside a runtime.
    #[must_use]
    pub fn share(&self) -> Arc<Share> {
        self.0.start_background();
        let threads = self.0.queues.map(|queue| {
            let credit = queue.lock().add_tenant();
            Arc::new(ThreadShare { credit, queue: Arc::clone(queue) })
        });
        Arc::new(Share { threads, flood: FloodDetector::default(), scheduler: Arc::clone(&self.0) })
    }
}

/// Ends the round when nothing but the tenants that wait for it could run.
async fn keep_rounds(queue: Weak<ThreadQueue>, stalled: Arc<Notify>) {
    loop {
        stalled.notified().await;
        loop {
            // Deferred by the runtime until it has no other task to run or is due to poll the I/O driver, and has polled
            // it: whatever is ready by then is marked.
            yield_now().await;
            let Some(queue) = queue.upgrade() else { return };
            let round = queue.lock().end_round();
            round.released.into_iter().for_each(Waker::wake);
            if !round.is_awaited {
                break;
            }
        }
    }
}

/// Samples how late timers fire, from when a flooding tenant asks for admission until there is no pause any more.
async fn sample_timers(queue: Weak<ThreadQueue>, flooded: Arc<Notify>) {
    loop {
        flooded.notified().await;
        loop {
            let slept_at = Instant::now();
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            let Some(queue) = queue.upgrade() else { return };
            if queue.admission.record_timer(slept_at.elapsed()).is_zero() {
                break;
            }
        }
    }
}

// === impl Scheduler ===

impl Scheduler {
    fn start_background(&self) {
        match &self.threads {
            Some(threads) => threads.iter().chain(threads.compute()).for_each(|thread| {
                self.queues.at(thread).start_background(Some(threads.handle(thread)));
            }),
            None => self.queues.iter().for_each(|queue| queue.start_background(None)),
        }
    }

    fn since_start(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

// === impl ThreadQueue ===

impl ThreadQueue {
    fn new(now: fn() -> Instant) -> Self {
        Self {
            queue: Mutex::new(RunQueue::new()),
            stalled: Arc::default(),
            flooded: Arc::default(),
            admission: AdmissionPacing::default(),
            background: Mutex::default(),
            now,
        }
    }

    fn lock(&self) -> MutexGuard<'_, RunQueue<Waker>> {
        // Nothing panics while the queue is inconsistent.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_background(self: &Arc<Self>, on: Option<&Handle>) {
        let mut background = self.background.lock().unwrap_or_else(PoisonError::into_inner);
        background.get_or_insert_with(|| {
            let keeper = spawn(on, keep_rounds(Arc::downgrade(self), Arc::clone(&self.stalled)));
            let sampler = spawn(on, sample_timers(Arc::downgrade(self), Arc::clone(&self.flooded)));
            [keeper, sampler].map(AbortOnDropHandle::new)
        });
    }

    /// A task of this tenant is runnable.
    fn mark(&self, credit: &Arc<CpuCredit>) {
        credit.mark_runnable();
        if !credit.is_active() {
            self.lock().activate(credit);
        }
    }
}

// === impl Share ===

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Share").field("charged", &self.charged()).finish_non_exhaustive()
    }
}

impl Share {
    /// The same future, run on this share on the current thread: each poll is charged to it, and put off while the share
    /// is spent.
    pub fn run<F: Future>(self: &Arc<Self>, future: F) -> impl Future<Output = F::Output> + use<F> {
        self.run_on(Thread::current(), future)
    }

    /// As [`Self::run`], for a future that will be polled on this thread.
    pub(crate) fn run_on<F: Future>(
        self: &Arc<Self>,
        thread: Thread,
        future: F,
    ) -> impl Future<Output = F::Output> + use<F> {
        let share = Arc::clone(self.threads.at(thread));
        // The task is about to be queued by the runtime, and its first poll has no waker of ours.
        share.queue.mark(&share.credit);
        let mut gate = Gate { share, turn: Turn::None, waker: None };
        async move {
            let mut future = pin!(future);
            poll_fn(move |cx| gate.poll(cx, |cx| future.as_mut().poll(cx))).await
        }
    }

    /// Waits until the tenant may accept one more connection: a pause while it floods and the machine is behind.
    pub async fn admit(&self) {
        let Scheduler { queues, now, cpus, .. } = &*self.scheduler;
        let now = self.scheduler.since_start(now());
        if !self.flood.record(now, *cpus, || self.accounts()) {
            return;
        }
        queues.iter().for_each(|queue| queue.flooded.notify_one());
        let pause = queues.iter().map(|queue| queue.admission.pause()).max().unwrap_or_default();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// CPU time that was charged to this share so far, on all threads.
    #[must_use]
    pub fn charged(&self) -> Duration {
        self.accounts().own
    }

    /// What was charged on all threads.
    fn accounts(&self) -> Charged {
        let each = self.threads.iter().map(|share| share.queue.lock().charged(&share.credit));
        each.fold(Charged::default(), |sum, one| Charged {
            own: sum.own + one.own,
            others: sum.others + one.others,
        })
    }
}

impl Drop for ThreadShare {
    fn drop(&mut self) {
        let waiting = self.queue.lock().remove_tenant(&self.credit);
        waiting.into_iter().for_each(Waker::wake);
    }
}

// === impl Gate ===

impl Gate {
    fn poll<T>(&mut self, cx: &mut Context<'_>, run: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let now = self.share.queue.now;
        let started = now();
        if !self.acquire(cx.waker()) {
            return Poll::Pending;
        }
        let polled = run(&mut Context::from_waker(self.marking_waker(cx.waker())));
        self.share.credit.charge(now().saturating_duration_since(started));
        if let Turn::Released = self.turn {
            self.turn = Turn::None;
            self.finish();
        }
        polled
    }

    /// Whether the future may run now. If not, `waker` is woken when it may.
    fn acquire(&mut self, waker: &Waker) -> bool {
        let ThreadShare { credit, queue: thread } = &*self.share;
        if matches!(self.turn, Turn::None) && credit.try_acquire() {
            return true;
        }
        let mut queue = thread.lock();
        if let Turn::Queued(ticket) = self.turn {
            if queue.is_queued(credit, ticket, waker) {
                return false;
            }
            self.turn = Turn::Released;
            return true;
        }
        let Err(wait) = queue.acquire(credit, waker) else { return true };
        drop(queue);
        self.turn = Turn::Queued(wait.ticket);
        if wait.is_stalled {
            thread.stalled.notify_one();
        }
        false
    }

    /// A released task has been polled, or will not be.
    fn finish(&self) {
        let ThreadShare { credit, queue: thread } = &*self.share;
        let next = thread.lock().finish(credit);
        if next.is_stalled {
            thread.stalled.notify_one();
        }
        next.released.into_iter().for_each(Waker::wake);
    }

    fn marking_waker(&mut self, task: &Waker) -> &Waker {
        let known = self.waker.take().filter(|(known, _)| known.will_wake(task));
        let (_, marking) = self.waker.insert(known.unwrap_or_else(|| {
            let ThreadShare { credit, queue } = &*self.share;
            let (credit, queue) = (Arc::clone(credit), Arc::clone(queue));
            let marking = MarkingWaker { task: task.clone(), credit, queue };
            (task.clone(), Waker::from(Arc::new(marking)))
        }));
        marking
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        match self.turn {
            Turn::None => {}
            Turn::Released => self.finish(),
            Turn::Queued(ticket) => {
                // Bound before it is dropped: the waker must not be dropped under the lock.
                let cancelled = self.share.queue.lock().cancel(&self.share.credit, ticket);
                if cancelled.is_none() {
                    self.finish();
                }
            }
        }
    }
}

// === impl MarkingWaker ===

impl Wake for MarkingWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.queue.mark(&self.credit);
        self.task.wake_by_ref();
    }
}

#[cfg(test)]
mod tests;
