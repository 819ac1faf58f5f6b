//! When requests are sent: each after the one before, at a rate, or by workers; and when that ends.

use std::io::Read as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use isthmus_rt::task::{Tasks, compute};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::{Client, Options, Outcome};

/// Sends all requests and tells of each as it ends.
pub(super) async fn run(
    client: Client,
    options: &Options,
    mut tell: impl FnMut(&Outcome) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (done, mut outcomes) = mpsc::unbounded_channel();
    let send = async {
        let held = held(options.hold);
        match (options.rate, options.workers) {
            (Some(rate), _) => at_a_rate(&Arc::new(client), options.number, rate, done, held).await,
            (None, workers) => {
                by_workers(&Arc::new(client), options.number, workers.unwrap_or(1), done, held).await;
            }
        }
    };
    let tell = async {
        while let Some(outcome) = outcomes.recv().await {
            tell(&outcome)?;
        }
        Ok(())
    };
    tokio::join!(send, tell).1
}

type Done = mpsc::UnboundedSender<Outcome>;

/// Begins a request whenever it is time for one, whatever has become of the others.
async fn at_a_rate(client: &Arc<Client>, number: u32, rate: u32, done: Done, held: impl Future<Output = ()>) {
    let tasks = Tasks::new("requests");
    let mut tick = interval(Duration::from_secs(1) / rate.max(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut held = pin!(held);
    let (mut is_held, mut n) = (true, 0);
    while is_held || n < number as usize {
        tokio::select! {
            biased;
            () = &mut held, if is_held => is_held = false,
            _ = tick.tick() => {
                let (client, done) = (Arc::clone(client), done.clone());
                tasks.spawn("request", async move {
                    // A reader of the results gets all of them.
                    let _ = done.send(client.ask(n).await);
                });
                n += 1;
            }
        }
    }
    drop(done);
    tasks.wait().await;
}

async fn by_workers(
    client: &Arc<Client>,
    number: u32,
    workers: u32,
    done: Done,
    held: impl Future<Output = ()>,
) {
    let tasks = Tasks::new("workers");
    let sent = Arc::new(AtomicUsize::new(0));
    let enough = Arc::new(AtomicBool::new(false));
    for _ in 0..workers {
        let (client, done) = (Arc::clone(client), done.clone());
        let (sent, enough) = (Arc::clone(&sent), Arc::clone(&enough));
        tasks.spawn("worker", async move {
            loop {
                let n = sent.fetch_add(1, Ordering::Relaxed);
                if n >= number as usize && enough.load(Ordering::Relaxed) {
                    return;
                }
                let _ = done.send(client.ask(n).await);
            }
        });
    }
    drop(done);
    held.await;
    enough.store(true, Ordering::Relaxed);
    tasks.wait().await;
}

/// Resolves when the parent has closed our standard input, or is gone.
async fn held(by_input: bool) {
    if by_input {
        let read = || {
            // What comes is not looked at, and an error is an end.
            let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
        };
        let _ = compute("standard input", read).await;
    }
}
