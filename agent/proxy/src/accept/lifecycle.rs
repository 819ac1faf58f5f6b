//! Lifecycle of the tasks of one pod or gateway: spawns its accept loops and drains them when the process drains or the
//! owner stops them, whichever comes first. Does not know what the tasks do.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_rt::drain::{self, Drain, Watch};
use isthmus_rt::fair::Share;
use isthmus_rt::task::{Spawnable, Tasks};
use isthmus_rt::threads::{Thread, Threads};
use tokio::sync::oneshot;

use super::acceptor::Acceptor;
use super::admission::Admission;
use super::listener::{Accepted, BoundListener};
use super::placement::Placement;

/// Tasks that are drained with the process or stopped by their owner. Dropping this aborts them.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    owner: Arc<str>,
    /// The share of CPU time on which all of the tasks run.
    share: Arc<Share>,
    threads: Threads,
    tasks: Tasks,
    own: WatchSlot,
    process: WatchSlot,
    stop: Mutex<Option<oneshot::Sender<StopRequest>>>,
}

/// Runs tasks of an owner as if its listeners had accepted them. Keeps the owner's tasks, so it is not to be kept itself.
#[derive(Debug, Clone)]
pub(crate) struct Carrier {
    threads: Threads,
    tasks: Tasks,
    own: WatchSlot,
    process: WatchSlot,
}

/// Delays the drain of a task's owner and of the process.
#[derive(Debug, Clone)]
pub(crate) struct Active {
    pub(crate) own: Watch,
    _process: Watch,
}

/// A drain watch, until draining starts: a watch that is kept counts as unfinished work.
type WatchSlot = Arc<Mutex<Option<Watch>>>;

#[derive(Debug)]
struct StopRequest {
    deadline: Duration,
    done: oneshot::Sender<()>,
}

impl Lifecycle {
    pub(crate) fn new(owner: Arc<str>, share: Arc<Share>, threads: Threads, process: Watch) -> Self {
        let (drain, watch) = drain::channel();
        let tasks = Tasks::new(Arc::clone(&owner)).on(Arc::clone(&share));
        let (stop, stop_requested) = oneshot::channel();
        let slot = |watch| Arc::new(Mutex::new(Some(watch)));
        let (own, shared) = (slot(watch), slot(process.clone()));
        let slots = [Arc::clone(&own), Arc::clone(&shared)];
        tasks.spawn("shutdown", shutdown(process, drain, slots, stop_requested));
        Self { owner, share, threads, tasks, own, process: shared, stop: Mutex::new(Some(stop)) }
    }

    /// Spawns a task that is aborted with its owner; draining does not wait for it.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Spawnable<Output = ()>) {
        self.tasks.spawn(name, task);
    }

    /// Serves a listener until draining starts; `admission` says what its connections get first. It accepts on the current
    /// thread; `placement` says where its connections are served.
    pub(crate) fn listen<F, Fut>(
        &self,
        bound: BoundListener,
        name: &'static str,
        placement: Placement,
        admission: Admission,
        serve: F,
    ) where
        F: Fn(Accepted, Watch) -> Fut + Send + Sync + 'static,
        Fut: Spawnable + Future<Output = ()>,
    {
        let (Some(drain), Some(process)) = (self.watch(), lock(&self.process).clone()) else { return };
        let (owner, share, threads) =
            (Arc::clone(&self.owner), Arc::clone(&self.share), self.threads.clone());
        // The process waits for its watch, that is for the last connection of this listener.
        let acceptor = Acceptor { bound, name, owner, share, admission, threads, placement, drain, process };
        self.tasks.spawn(name, acceptor.run(serve));
    }

    /// What runs connections of the owner that come from another process.
    pub(crate) fn carrier(&self) -> Carrier {
        Carrier {
            threads: self.threads.clone(),
            tasks: self.tasks.clone(),
            own: Arc::clone(&self.own),
            process: Arc::clone(&self.process),
        }
    }

    /// A watch that delays the drain for as long as it lives; `None` once draining has started.
    pub(crate) fn watch(&self) -> Option<Watch> {
        lock(&self.own).clone()
    }

    /// Closes the listeners, waits up to `deadline` for work in flight, then aborts it.
    pub(crate) async fn stop(&self, deadline: Duration) {
        let stop = lock(&self.stop).take();
        if let Some(stop) = stop {
            let (done, ended) = oneshot::channel();
            if stop.send(StopRequest { deadline, done }).is_ok() {
                // An error means that the process drained meanwhile.
                let _ = ended.await;
            }
        }
        self.tasks.abort_all().await;
    }
}

// === impl Carrier ===

impl Carrier {
    /// What each task should hold; `None` once draining has started.
    pub(crate) fn active(&self) -> Option<Active> {
        Some(Active { own: lock(&self.own).clone()?, _process: lock(&self.process).clone()? })
    }

    /// Starts a task on a thread.
    pub(crate) fn spawn_on(&self, thread: Thread, name: &'static str, task: impl Spawnable<Output = ()>) {
        self.tasks.spawn_on(&self.threads, thread, name, task);
    }

    /// Starts a task on this thread.
    pub(crate) fn spawn(&self, name: &'static str, task: impl Spawnable<Output = ()>) {
        self.tasks.spawn(name, task);
    }
}

async fn shutdown(
    process: Watch,
    drain: Drain,
    slots: [WatchSlot; 2],
    mut stop_requested: oneshot::Receiver<StopRequest>,
) {
    let request = tokio::select! {
        request = &mut stop_requested => match request {
            Ok(request) => Some(request),
            // The owner was dropped and has aborted its tasks.
            Err(_) => return,
        },
        () = process.graceful() => None,
    };
    for slot in slots {
        lock(&slot).take();
    }
    // No deadline here, since a stop request may still set one; dropping this future forces the remaining work to end.
    let mut draining = pin!(drain.shutdown(Duration::MAX));
    let request = match request {
        Some(request) => request,
        None => tokio::select! {
            _ = &mut draining => return,
            () = process.forced() => return,
            request = &mut stop_requested => match request {
                Ok(request) => request,
                Err(_) => return,
            },
        },
    };
    tokio::select! {
        _ = &mut draining => {}
        () = process.forced() => {}
        () = tokio::time::sleep(request.deadline) => {}
    }
    // The owner may have stopped waiting.
    let _ = request.done.send(());
}

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is still consistent: no code panics while it holds it.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_rt::drain::Outcome;
    use isthmus_rt::fair::FairScheduler;

    #[tokio::test(start_paused = true)]
    async fn a_process_drain_waits_for_work_in_flight() {
        let (process, watch) = drain::channel();
        let lifecycle =
            Lifecycle::new("pod".into(), FairScheduler::default().share(), Threads::current(), watch);
        let work = lifecycle.watch().unwrap();
        lifecycle.spawn("work", async move {
            work.graceful().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        let start = tokio::time::Instant::now();
        assert_eq!(process.shutdown(Duration::from_secs(60)).await, Outcome::Drained);
        assert_eq!(start.elapsed().as_secs(), 3);
        assert!(lifecycle.watch().is_none(), "draining has started");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_drain_forces_work_at_its_deadline() {
        let (process, watch) = drain::channel();
        let lifecycle =
            Lifecycle::new("pod".into(), FairScheduler::default().share(), Threads::current(), watch);
        let work = lifecycle.watch().unwrap();
        let (ended, seen) = oneshot::channel();
        lifecycle.spawn("work", async move {
            work.forced().await;
            ended.send(()).unwrap();
        });
        process.shutdown(Duration::from_secs(5)).await;
        seen.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn stop_aborts_work_at_its_deadline() {
        let (_process, watch) = drain::channel();
        let lifecycle =
            Lifecycle::new("pod".into(), FairScheduler::default().share(), Threads::current(), watch);
        let work = lifecycle.watch().unwrap();
        lifecycle.spawn("stuck", async move {
            std::future::pending::<()>().await;
            drop(work);
        });
        let start = tokio::time::Instant::now();
        lifecycle.stop(Duration::from_secs(7)).await;
        assert_eq!(start.elapsed().as_secs(), 7);
        lifecycle.stop(Duration::ZERO).await;
    }
}
