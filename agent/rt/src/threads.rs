//! The data threads: each has a runtime of its own, and a task stays on the thread on which it was started. Work moves
//! between threads only before it begins: [`Threads::choose`] says where, [`crate::task::Tasks::spawn_on`] starts it there.
//!
//! A runtime that steals work would move the parts of one connection apart, and each message would wake another thread.
//! Which thread suits is decided by [`steering`](self::steering), from each thread's load; how that is measured is in
//! `load`. Nothing here knows what a connection is.

mod load;
mod per_thread;
mod steering;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio::sync::oneshot;

use self::load::LoadMeter;
pub use self::load::Occupancy;
pub use self::per_thread::PerThread;
use self::steering::Load;
pub use self::steering::Preference;

thread_local! {
    static CURRENT: Cell<Thread> = const { Cell::new(Thread(0)) };
}

/// One of the data threads. Any other thread of the process counts as the first one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Thread(usize);

/// The data threads of the process. Clones are handles to the same threads and do not keep them running.
#[derive(Clone)]
pub struct Threads(Arc<[DataThread]>, Arc<RoundRobin>);

/// Keeps the threads running. Dropping it ends them without waiting for their tasks.
#[derive(Debug)]
pub struct RunningThreads(
    #[expect(dead_code, reason = "a thread ends when its sender is dropped")] Vec<oneshot::Sender<()>>,
);

struct DataThread {
    runtime: Handle,
    load: Arc<LoadMeter>,
}

struct RoundRobin {
    next: AtomicUsize,
    started: Instant,
}

/// Until it is dropped, what is registered and spawned belongs to a data thread.
#[derive(Debug)]
pub struct Entered<'a> {
    _runtime: EnterGuard<'a>,
    before: Thread,
}

// === impl Thread ===

impl Thread {
    /// The data thread on which the caller runs.
    #[must_use]
    pub fn current() -> Self {
        CURRENT.get()
    }

    /// Its number, from 0.
    #[must_use]
    pub fn index(self) -> usize {
        self.0
    }
}

// === impl Threads ===

impl Threads {
    /// Starts `count` threads, at least one, with this name and their number.
    ///
    /// # Errors
    /// When a thread or its event loop cannot be created.
    pub fn start(name: &str, count: usize) -> io::Result<(Self, RunningThreads)> {
        let (mut threads, mut running) = (Vec::new(), Vec::new());
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            threads.push(DataThread { runtime: runtime.handle().clone(), load: Arc::default() });
            let (stop, stopped) = oneshot::channel::<()>();
            running.push(stop);
            let run = move || {
                CURRENT.set(Thread(index));
                // Resolves when the sender is dropped.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            };
            std::thread::Builder::new().name(format!("{name}-{index}")).spawn(run)?;
        }
        Ok((Self::of(threads), RunningThreads(running)))
    }

    /// The current runtime as the only thread, for tests and tools. Must be called inside a runtime.
    #[must_use]
    pub fn current() -> Self {
        Self::of(vec![DataThread { runtime: Handle::current(), load: Arc::default() }])
    }

    fn of(threads: Vec<DataThread>) -> Self {
        Self(threads.into(), Arc::new(RoundRobin { next: AtomicUsize::new(0), started: Instant::now() }))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Thread> + use<> {
        (0..self.0.len()).map(Thread)
    }

    /// The runtime of one.
    #[must_use]
    pub fn handle(&self, thread: Thread) -> &Handle {
        &self.at(thread).runtime
    }

    /// Makes one the current thread for what the caller registers and spawns.
    #[must_use]
    pub fn enter(&self, thread: Thread) -> Entered<'_> {
        let _runtime = self.handle(thread).enter();
        Entered { _runtime, before: CURRENT.replace(thread) }
    }

    /// Each in turn, for what has no better reason to be on one than on another.
    #[must_use]
    pub fn next(&self) -> Thread {
        Thread(self.1.next.fetch_add(1, Ordering::Relaxed) % self.0.len())
    }

    /// The thread for a new connection. It counts towards that thread's load until the load was measured again.
    #[must_use]
    pub fn choose(&self, preference: Preference) -> Thread {
        if self.0.len() == 1 {
            return Thread(0);
        }
        let now = self.1.started.elapsed();
        let load = |index: usize| -> Load {
            let Some(thread) = self.0.get(index) else { return Load::default() };
            thread.load.read(now, || thread.runtime.metrics().worker_total_busy_duration(0))
        };
        let chosen = steering::choose(self.0.len(), load, Thread::current().0, preference);
        self.at(Thread(chosen)).load.add_arrival();
        Thread(chosen)
    }

    /// Counts something that stays on a thread for long, until the value is dropped.
    #[must_use]
    pub fn occupy(&self, thread: Thread) -> Occupancy {
        Occupancy::new(Arc::clone(&self.at(thread).load))
    }

    fn at(&self, thread: Thread) -> &DataThread {
        // A thread of another group, in tests: any will do.
        &self.0[thread.0 % self.0.len()]
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("count", &self.count()).finish_non_exhaustive()
    }
}

// === impl Entered ===

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

#[cfg(test)]
mod tests;
