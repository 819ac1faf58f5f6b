//! The data threads: each has a runtime of its own, and a task stays on the thread on which it was started. Work moves
//! between threads only before it begins: [`Threads::choose`] says where, [`crate::task::Tasks::spawn_on`] starts it there.
//!
//! A runtime that steals work would move the parts of one connection apart, and each message would wake another thread.
//! Which thread suits is decided by `steering`, from each thread's load; how that is measured is in `load`.
//!
//! Beside them is the compute thread, for steps that take as long as many messages ([`Offload`]): the operating system
//! divides the processors between it and the data threads, which go on meanwhile. Nothing here knows what a connection is.

mod load;
mod offload;
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
pub use self::offload::Offload;
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
pub struct Threads(Arc<Group>);

/// Keeps the threads running. Dropping it ends them without waiting for their tasks.
#[derive(Debug)]
pub struct RunningThreads(Vec<oneshot::Sender<()>>);

struct DataThread {
    runtime: Handle,
    load: Arc<LoadMeter>,
}

struct Group {
    threads: Vec<DataThread>,
    /// The compute thread's; `None` where the caller's runtime is all there is.
    compute: Option<Handle>,
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
    /// Starts `count` threads, at least one, with this name and their number, and the compute thread.
    ///
    /// # Errors
    /// When a thread or its event loop cannot be created.
    pub fn start(name: &str, count: usize) -> io::Result<(Self, RunningThreads)> {
        let (mut threads, mut running) = (Vec::new(), RunningThreads(Vec::new()));
        let count = count.max(1);
        for index in 0..count {
            let runtime = running.start(format!("{name}-{index}"), Thread(index))?;
            threads.push(DataThread { runtime, load: Arc::default() });
        }
        let compute = running.start(format!("{name}-c"), Thread(count))?;
        Ok((Self::of(threads, Some(compute)), running))
    }

    /// The current runtime as the only thread, for tests and tools. Must be called inside a runtime.
    #[must_use]
    pub fn current() -> Self {
        Self::of(vec![DataThread { runtime: Handle::current(), load: Arc::default() }], None)
    }

    fn of(threads: Vec<DataThread>, compute: Option<Handle>) -> Self {
        Self(Arc::new(Group { threads, compute, next: AtomicUsize::new(0), started: Instant::now() }))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.threads.len()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Thread> + use<> {
        (0..self.count()).map(Thread)
    }

    /// The runtime of one.
    #[must_use]
    pub fn handle(&self, thread: Thread) -> &Handle {
        match &self.0.compute {
            Some(compute) if thread.0 == self.count() => compute,
            _ => &self.at(thread).runtime,
        }
    }

    /// The compute thread, if there is one.
    pub(crate) fn compute(&self) -> Option<Thread> {
        self.0.compute.is_some().then(|| Thread(self.count()))
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
        Thread(self.0.next.fetch_add(1, Ordering::Relaxed) % self.count())
    }

    /// The thread for a new connection. It counts towards that thread's load until the load was measured again.
    #[must_use]
    pub fn choose(&self, preference: Preference) -> Thread {
        if self.count() == 1 {
            return Thread(0);
        }
        let now = self.0.started.elapsed();
        let load = |index: usize| -> Load {
            let Some(thread) = self.0.threads.get(index) else { return Load::default() };
            thread.load.read(now, || thread.runtime.metrics().worker_total_busy_duration(0))
        };
        let chosen = steering::choose(self.count(), load, Thread::current().0, preference);
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
        &self.0.threads[thread.0 % self.count()]
    }
}

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Threads").field("count", &self.count()).finish_non_exhaustive()
    }
}

// === impl RunningThreads ===

impl RunningThreads {
    fn start(&mut self, name: String, number: Thread) -> io::Result<Handle> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let run = move || {
            CURRENT.set(number);
            // Resolves when the sender is dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name(name).spawn(run)?;
        self.0.push(stop);
        Ok(handle)
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
