//! Owned tasks: the only place that spawns. A [`Tasks`] owns what it started; dropping it aborts them, a panic in one
//! is logged with the task's name and touches no other.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// What can be spawned. The `Send` is here and nowhere else.
pub trait Spawnable: Future + Send + 'static {}
impl<F: Future + Send + 'static> Spawnable for F {}

/// A group of tasks with one owner. Clones share the group; when the last clone is dropped every task is aborted.
#[derive(Debug, Clone)]
pub struct Tasks(Arc<Group>);

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    tracker: TaskTracker,
    cancelled: CancellationToken,
}

impl Drop for Group {
    fn drop(&mut self) {
        self.cancelled.cancel();
    }
}

impl Tasks {
    /// An empty group; `name` is shown in the log when one of its tasks panics.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let (tracker, cancelled) = (TaskTracker::new(), CancellationToken::new());
        Self(Arc::new(Group { name: name.into(), tracker, cancelled }))
    }

    /// Runs a future in this group on the current runtime. The task keeps no reference to the group, so dropping the
    /// last [`Tasks`] still aborts it.
    #[expect(clippy::disallowed_methods, reason = "the one place that spawns")]
    pub fn spawn<F>(&self, what: &'static str, future: F) -> AbortHandle
    where
        F: Spawnable,
        F::Output: Send,
    {
        let group = Arc::clone(&self.0.name);
        let cancelled = self.0.cancelled.clone();
        let run = async move {
            let caught = AssertUnwindSafe(future);
            tokio::select! {
                () = cancelled.cancelled() => {}
                outcome = CatchPanic(Box::pin(caught)) => if outcome.is_none() {
                    tracing::error!(task = what, group = %group, "task panicked");
                },
            }
        };
        tokio::spawn(self.0.tracker.track_future(run.in_current_span())).abort_handle()
    }

    /// How many tasks run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.tracker.len()
    }

    /// Whether no task runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.tracker.is_empty()
    }

    /// Aborts every task and waits until they are gone.
    pub async fn abort_all(&self) {
        self.0.cancelled.cancel();
        self.wait().await;
    }

    /// Waits until every task has ended.
    pub async fn wait(&self) {
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }
}

/// Computes something for long on a thread that is there for such work, so that no task waits for it. `None` when it
/// panicked. What was begun is finished even when nobody waits for it any more.
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

/// Turns a panic inside `poll` into `None`.
struct CatchPanic<F: Future>(std::pin::Pin<Box<AssertUnwindSafe<F>>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Option<F::Output>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let inner = self.0.as_mut();
        match std::panic::catch_unwind(AssertUnwindSafe(|| inner.poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        }
    }
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
