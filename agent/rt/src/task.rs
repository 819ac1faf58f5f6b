//! Owned tasks: the only way to spawn outside of this crate. A [`Tasks`] owns what it started; dropping it aborts them, a panic in one
//! is logged with the task's name and touches no other.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::fair::Share;
use crate::latch::Latch;
use crate::spawn;
pub use crate::spawn::Spawnable;
use crate::threads::{Thread, Threads};

/// A group of tasks with one owner. Clones share the group; when the last clone is dropped every task is aborted.
#[derive(Debug, Clone)]
pub struct Tasks {
    group: Arc<Group>,
    /// What the CPU time of the tasks is charged to.
    share: Option<Arc<Share>>,
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    tracker: TaskTracker,
    cancelled: Arc<Latch>,
}

impl Drop for Group {
    fn drop(&mut self) {
        self.cancelled.set();
    }
}

impl Tasks {
    /// An empty group; `name` is shown in the log when one of its tasks panics.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let (tracker, cancelled) = (TaskTracker::new(), Arc::default());
        Self { group: Arc::new(Group { name: name.into(), tracker, cancelled }), share: None }
    }

    /// The same group; what is spawned through this handle, or a clone of it, runs on the tenant's share.
    #[must_use]
    pub fn on(self, share: Arc<Share>) -> Self {
        Self { share: Some(share), ..self }
    }

    /// Runs a future in this group on the current runtime. The task keeps no reference to the group, so dropping the
    /// last [`Tasks`] still aborts it.
    pub fn spawn<F>(&self, what: &'static str, future: F) -> AbortHandle
    where
        F: Spawnable,
        F::Output: Send,
    {
        self.start(what, future, Thread::current(), None)
    }

    /// As [`Self::spawn`], but on one of the data threads, for as long as the task lives.
    pub fn spawn_on<F>(&self, threads: &Threads, thread: Thread, what: &'static str, future: F) -> AbortHandle
    where
        F: Spawnable,
        F::Output: Send,
    {
        self.start(what, future, thread, Some(threads.handle(thread)))
    }

    fn start<F>(&self, what: &'static str, future: F, thread: Thread, on: Option<&Handle>) -> AbortHandle
    where
        F: Spawnable,
        F::Output: Send,
    {
        let group = Arc::clone(&self.group.name);
        let cancelled = self.group.cancelled.wait();
        // Boxed: each of the futures around it would reserve its size twice, and copy it when it is polled first.
        let future = Box::pin(future);
        let run = async move {
            tokio::select! {
                () = cancelled => {}
                outcome = AssertUnwindSafe(future).catch_unwind() => if outcome.is_err() {
                    tracing::error!(task = what, group = %group, "task panicked");
                },
            }
        };
        let run = run.in_current_span();
        let tracker = &self.group.tracker;
        let task = match &self.share {
            Some(share) => spawn::spawn(on, tracker.track_future(share.run_on(thread, run))),
            None => spawn::spawn(on, tracker.track_future(run)),
        };
        task.abort_handle()
    }

    /// How many tasks run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.group.tracker.len()
    }

    /// Whether no task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.group.tracker.is_empty()
    }

    /// Aborts every task and waits until they are gone.
    pub async fn abort_all(&self) {
        self.group.cancelled.set();
        self.wait().await;
    }

    /// Waits until every task has ended.
    pub async fn wait(&self) {
        self.group.tracker.close();
        self.group.tracker.wait().await;
    }
}

/// Runs a long computation on a blocking thread, so that it delays no task of the runtime. `None` when it panicked. A
/// computation that has started finishes even when the caller's future is dropped.
pub async fn compute<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let done = tokio::task::spawn_blocking(work).await;
    if done.is_err() {
        tracing::error!(task = what, "computation panicked or was cancelled");
    }
    done.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropping_the_owner_aborts_its_tasks() {
        let tasks = Tasks::new("test");
        let (alive, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        tasks.spawn("forever", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(tasks);
        assert!(gone.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_panic_ends_one_task_only() {
        let tasks = Tasks::new("test");
        tasks.spawn("bad", async { panic!("on purpose") });
        let (done, mut ok) = tokio::sync::mpsc::channel::<()>(1);
        tasks.spawn("good", async move {
            let _ = done.send(()).await;
        });
        assert!(ok.recv().await.is_some());
        tasks.wait().await;
    }
}
