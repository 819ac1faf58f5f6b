//! What runs on behalf of one pod or gateway: its listeners' loops and their end, ordered by the process or the owner.

use super::acceptor::Acceptor;
use super::handshake_slots::HandshakeSlots;
use super::listener::{Accepted, BoundListener};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_rt::drain::{self, Drain, Watch};
use isthmus_rt::fair::Share;
use isthmus_rt::task::{Spawnable, Tasks};
use tokio::sync::oneshot;

/// Tasks that are drained with the process or stopped by their owner, whichever comes first. Dropped, they end at once.
#[derive(Debug)]
pub(crate) struct Lifecycle {
    owner: Arc<str>,
    /// The pod's share of CPU time, which all of its tasks run on.
    share: Arc<Share>,
    tasks: Tasks,
    own: Slot,
    process: Slot,
    stop: Mutex<Option<oneshot::Sender<Order>>>,
}

/// Watches are taken out when the end begins: one that is kept counts as work that is not done.
type Slot = Arc<Mutex<Option<Watch>>>;

#[derive(Debug)]
struct Order {
    deadline: Duration,
    done: oneshot::Sender<()>,
}

impl Lifecycle {
    pub(crate) fn new(owner: Arc<str>, share: Arc<Share>, process: Watch) -> Self {
        let (drain, watch) = drain::channel();
        let tasks = Tasks::new(Arc::clone(&owner)).on(Arc::clone(&share));
        let (stop, ordered) = oneshot::channel();
        let slot = |watch| Arc::new(Mutex::new(Some(watch)));
        let (own, shared) = (slot(watch), slot(process.clone()));
        let slots = [Arc::clone(&own), Arc::clone(&shared)];
        tasks.spawn("shutdown", shutdown(process, drain, slots, ordered));
        Self { owner, share, tasks, own, process: shared, stop: Mutex::new(Some(stop)) }
    }

    /// Runs a task that ends with its owner.
    pub(crate) fn spawn(&self, what: &'static str, task: impl Spawnable<Output = ()>) {
        self.tasks.spawn(what, task);
    }

    /// Serves a listener until the end begins; `limit` bounds the connections that are being set up.
    pub(crate) fn listen<F, Fut>(
        &self,
        bound: BoundListener,
        what: &'static str,
        limit: Option<Arc<HandshakeSlots>>,
        serve: F,
    ) where
        F: FnMut(Accepted, Watch) -> Fut + Send + 'static,
        Fut: Spawnable + Future<Output = ()>,
    {
        let (Some(drain), Some(process)) = (self.watch(), lock(&self.process).clone()) else { return };
        let (owner, share) = (Arc::clone(&self.owner), Arc::clone(&self.share));
        let acceptor = Acceptor { bound, what, owner, share, limit, drain };
        self.tasks.spawn(what, async move {
            acceptor.run(serve).await;
            // The process is not done before the last connection of this listener is.
            drop(process);
        });
    }

    /// For one more piece of work; `None` once the end has begun.
    pub(crate) fn watch(&self) -> Option<Watch> {
        lock(&self.own).clone()
    }

    /// Ends it: nothing new, `deadline` for what is open, then at once.
    pub(crate) async fn stop(&self, deadline: Duration) {
        let order = lock(&self.stop).take();
        if let Some(order) = order {
            let (done, ended) = oneshot::channel();
            if order.send(Order { deadline, done }).is_ok() {
                // An error means that the process ended it meanwhile.
                let _ = ended.await;
            }
        }
        self.tasks.abort_all().await;
    }
}

async fn shutdown(process: Watch, drain: Drain, slots: [Slot; 2], mut ordered: oneshot::Receiver<Order>) {
    let order = tokio::select! {
        order = &mut ordered => match order {
            Ok(order) => Some(order),
            // Its owner is gone, and with it whatever there is to end.
            Err(_) => return,
        },
        () = process.graceful() => None,
    };
    for slot in slots {
        lock(&slot).take();
    }
    // The deadline is ours to keep: dropping this forces what is left.
    let mut ending = pin!(drain.shutdown(Duration::MAX));
    let order = match order {
        Some(order) => order,
        None => tokio::select! {
            _ = &mut ending => return,
            () = process.forced() => return,
            order = &mut ordered => match order {
                Ok(order) => order,
                Err(_) => return,
            },
        },
    };
    tokio::select! {
        _ = &mut ending => {}
        () = process.forced() => {}
        () = tokio::time::sleep(order.deadline) => {}
    }
    // Its owner may not care to wait.
    let _ = order.done.send(());
}

fn lock<T>(slot: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while a slot is locked.
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_rt::drain::Outcome;
    use isthmus_rt::fair::FairScheduler;

    #[tokio::test(start_paused = true)]
    async fn the_process_waits_for_work_that_finishes() {
        let (process, watch) = drain::channel();
        let running = Lifecycle::new("pod".into(), FairScheduler::default().share(), watch);
        let work = running.watch().unwrap();
        running.spawn("work", async move {
            work.graceful().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        let begun = tokio::time::Instant::now();
        assert_eq!(process.shutdown(Duration::from_secs(60)).await, Outcome::Drained);
        assert_eq!(begun.elapsed().as_secs(), 3);
        assert!(running.watch().is_none(), "nothing new is taken");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_does_not_finish_is_forced_by_the_process() {
        let (process, watch) = drain::channel();
        let running = Lifecycle::new("pod".into(), FairScheduler::default().share(), watch);
        let work = running.watch().unwrap();
        let (ended, seen) = oneshot::channel();
        running.spawn("work", async move {
            work.forced().await;
            ended.send(()).unwrap();
        });
        process.shutdown(Duration::from_secs(5)).await;
        seen.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn stop_waits_for_the_deadline_and_then_cuts() {
        let (_process, watch) = drain::channel();
        let running = Lifecycle::new("pod".into(), FairScheduler::default().share(), watch);
        let work = running.watch().unwrap();
        running.spawn("deaf", async move {
            std::future::pending::<()>().await;
            drop(work);
        });
        let begun = tokio::time::Instant::now();
        running.stop(Duration::from_secs(7)).await;
        assert_eq!(begun.elapsed().as_secs(), 7);
        running.stop(Duration::ZERO).await;
    }
}
