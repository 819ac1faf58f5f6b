//! Where steps are computed that take as long as many messages.

use tokio::sync::oneshot;

use super::Threads;
use crate::task::Tasks;

/// Computes on the compute thread, where each tenant has its share; or, by default, in place.
#[derive(Debug, Clone, Default)]
pub struct Offload(Option<(Tasks, Threads)>);

impl Offload {
    /// On the compute thread of `threads`, if it has one, as one of these tasks.
    #[must_use]
    pub fn new(tasks: &Tasks, threads: &Threads) -> Self {
        Self(threads.compute().map(|_| (tasks.clone(), threads.clone())))
    }

    /// Computes a step. `None` when it panicked, which is logged with its name, or when the tasks were aborted. A caller
    /// that is dropped meanwhile does not end it.
    pub async fn run<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let Some((tasks, threads)) = &self.0 else { return Some(work()) };
        let thread = threads.compute()?;
        let (done, outcome) = oneshot::channel();
        let run = async move {
            // Fails when the caller was dropped.
            let _ = done.send(work());
        };
        tasks.spawn_on(threads, thread, what, run);
        outcome.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fair::FairScheduler;

    fn here() -> Option<String> {
        std::thread::current().name().map(ToOwned::to_owned)
    }

    #[tokio::test]
    async fn a_step_is_computed_beside_the_data_threads_and_charged() {
        let (threads, _running) = Threads::start("test", 2).unwrap();
        let share = FairScheduler::new(&threads).share();
        let tasks = Tasks::new("test").on(std::sync::Arc::clone(&share));
        let offload = Offload::new(&tasks, &threads);
        let slow = || {
            std::thread::sleep(std::time::Duration::from_millis(2));
            here()
        };
        assert_eq!(offload.run("step", slow).await, Some(Some("test-c".to_owned())));
        tasks.wait().await;
        assert!(share.charged() >= std::time::Duration::from_millis(1), "{share:?}");
        assert_eq!(offload.run::<()>("step", || panic!("on purpose")).await, None);
    }

    #[tokio::test]
    async fn without_a_compute_thread_a_step_is_computed_in_place() {
        let offload = Offload::new(&Tasks::new("test"), &Threads::current());
        assert_eq!(offload.run("step", here).await, Some(here()));
        assert_eq!(Offload::default().run("step", here).await, Some(here()));
    }
}
