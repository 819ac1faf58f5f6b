//! What fair scheduling costs and what it is good for: a poll of a task on a share that is active alone beside a plain
//! task's, and how long a neighbour's task waits for its poll while another tenant keeps a thousand tasks busy, with and
//! without the scheduler. Compared in one run; the ratios are printed at the end.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use criterion::Criterion;
use isthmus_benches::median;
use isthmus_rt::fair::{FairScheduler, QUANTUM};
use isthmus_rt::task::Tasks;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

/// Polls of one task per iteration.
const POLLS: u32 = 10_000;
/// Tasks of the tenant that floods.
const FLOOD: usize = 1_000;
/// What one poll of them takes: about a record of a tunnel.
const WORK: Duration = Duration::from_micros(10);

/// How long something took in one run.
struct Times {
    median: Duration,
    p99: Duration,
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let polls = [false, true].map(|on_share| poll(&mut criterion, on_share));
    let waits = [("quiet", 0, false), ("flood", FLOOD, false), ("flood on shares", FLOOD, true)]
        .map(|(name, flood, is_fair)| neighbour(&mut criterion, name, flood, is_fair));
    criterion.final_summary();
    println!("\nin this run:");
    if let [Some(plain), Some(on_share)] = polls {
        let (plain, on_share) = (plain.median / POLLS, on_share.median / POLLS);
        println!("  a poll: {plain:?} plain, {:?} more on a share", on_share.saturating_sub(plain));
    }
    if let [Some(quiet), Some(flood), Some(fair)] = waits {
        for (what, of) in
            [("median", (|times| times.median) as fn(&Times) -> Duration), ("p99", |times| times.p99)]
        {
            let [quiet, flood, fair] = [&quiet, &flood, &fair].map(of);
            let ratio = fair.as_secs_f64() / flood.as_secs_f64();
            println!(
                "  a neighbour's wait, {what}: {quiet:?} quiet, {flood:?} behind a flood, {fair:?} with shares"
            );
            println!("    with shares: {ratio:.4} of that without; a quantum is {QUANTUM:?}");
        }
    }
}

/// A task that is woken at each of its polls.
async fn polled_often() {
    let mut left = POLLS;
    poll_fn(|cx| {
        left -= 1;
        if left == 0 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn poll(criterion: &mut Criterion, on_share: bool) -> Option<Times> {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let tasks = runtime.block_on(async {
        let tasks = Tasks::new("bench");
        if on_share { tasks.on(FairScheduler::default().share()) } else { tasks }
    });
    let name = if on_share { "on a share" } else { "plain" };
    measure(criterion, &format!("fair/{POLLS} polls/{name}"), || {
        runtime.block_on(async {
            let (done, ended) = oneshot::channel();
            let started = Instant::now();
            tasks.spawn("polled", async move {
                polled_often().await;
                let _ = done.send(());
            });
            let _ = ended.await;
            started.elapsed()
        })
    })
}

async fn busy() {
    loop {
        let started = Instant::now();
        while started.elapsed() < WORK {
            std::hint::spin_loop();
        }
        yield_now().await;
    }
}

fn neighbour(criterion: &mut Criterion, name: &str, flood: usize, is_fair: bool) -> Option<Times> {
    let runtime: Runtime =
        Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let guard = runtime.enter();
    let scheduler = FairScheduler::default();
    let tenant = || {
        let tasks = Tasks::new("bench");
        if is_fair { tasks.on(scheduler.share()) } else { tasks }
    };
    let (flooding, calm) = (tenant(), tenant());
    for _ in 0..flood {
        flooding.spawn("busy", busy());
    }
    let (ask, mut asked) = mpsc::unbounded_channel::<(Instant, std::sync::mpsc::Sender<Duration>)>();
    calm.spawn("neighbour", async move {
        while let Some((woken_at, waited)) = asked.recv().await {
            let _ = waited.send(woken_at.elapsed());
        }
    });
    drop(guard);
    let times = measure(criterion, &format!("fair/neighbour/{name}"), || {
        let (waited, seen) = std::sync::mpsc::channel();
        ask.send((Instant::now(), waited)).expect("the neighbour runs");
        seen.recv().expect("the neighbour runs")
    });
    drop((flooding, calm));
    runtime.shutdown_background();
    times
}

/// What `sample` gives; `None` when the run is told to skip it.
fn measure(criterion: &mut Criterion, name: &str, mut sample: impl FnMut() -> Duration) -> Option<Times> {
    let times = RefCell::new(Vec::new());
    criterion.bench_function(name, |bencher| {
        bencher.iter_custom(|count| {
            let some: Vec<Duration> = (0..count).map(|_| sample()).collect();
            times.borrow_mut().extend_from_slice(&some);
            some.iter().sum()
        });
    });
    let mut times = times.into_inner();
    times.sort_unstable();
    Some(Times { median: median(&times)?, p99: *times.get(times.len() * 99 / 100)? })
}
