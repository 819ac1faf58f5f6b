//! The scheduler on a runtime, with a clock that moves as its tasks say.

use std::cell::Cell;

use super::admission::{HOLD, MAX_PAUSE};
use super::*;
use crate::task::Tasks;

thread_local! {
    static NOW: Cell<Option<Instant>> = const { Cell::new(None) };
}

fn clock() -> Instant {
    NOW.get().unwrap_or_else(|| {
        NOW.set(Some(Instant::now()));
        clock()
    })
}

fn advance(time: Duration) {
    NOW.set(Some(clock() + time));
}

type Log = Arc<Mutex<Vec<&'static str>>>;

/// Ten polls that take the thread for a while each; every one is logged.
async fn work(name: &'static str, log: Log) {
    for _ in 0..10 {
        advance(Duration::from_micros(100));
        log.lock().unwrap().push(name);
        yield_now().await;
    }
}

/// How many polls of the flood come before the neighbour's next one, at most.
async fn longest_wait(flood: usize, is_fair: bool) -> usize {
    let scheduler = FairScheduler::with_clock(clock);
    let (busy, calm) = (scheduler.share(), scheduler.share());
    let (log, tasks) = (Log::default(), Tasks::new("test"));
    let of = |share: &Arc<Share>| if is_fair { tasks.clone().on(Arc::clone(share)) } else { tasks.clone() };
    let (busy, calm) = (of(&busy), of(&calm));
    for _ in 0..flood {
        busy.spawn("work", work("flood", Arc::clone(&log)));
    }
    calm.spawn("work", work("neighbour", Arc::clone(&log)));
    tasks.wait().await;
    let log = log.lock().unwrap();
    assert_eq!(log.len(), (flood + 1) * 10);
    let last = log.iter().rposition(|name| *name == "neighbour").unwrap();
    log[..last].split(|name| *name == "neighbour").map(<[_]>::len).max().unwrap()
}

#[tokio::test]
async fn a_neighbour_waits_for_one_quantum_of_a_flood_and_not_for_its_queue() {
    let polls = longest_wait(100, false).await;
    assert!(polls >= 100, "the control: {polls}");
    let polls = longest_wait(100, true).await;
    assert!(polls <= 6, "a quantum is 5 polls: {polls}");
}

#[tokio::test]
async fn what_tasks_on_a_share_are_polled_for_is_charged_to_it() {
    let scheduler = FairScheduler::with_clock(clock);
    let (one, other) = (scheduler.share(), scheduler.share());
    let tasks = Tasks::new("test");
    tasks.clone().on(Arc::clone(&one)).spawn("work", work("one", Log::default()));
    tasks.spawn("work", work("on no share", Log::default()));
    tasks.wait().await;
    assert_eq!((one.charged(), other.charged()), (Duration::from_millis(1), Duration::ZERO));
}

/// Spends the share's quantum, and more, while the other one is active.
async fn exhaust(share: &Arc<Share>, other: &Arc<Share>) {
    other.run(async {}).await;
    share.run(async { advance(QUANTUM * 2) }).await;
}

#[tokio::test]
async fn a_waiter_that_is_dropped_holds_up_no_other() {
    let scheduler = FairScheduler::with_clock(clock);
    let (one, other) = (scheduler.share(), scheduler.share());
    exhaust(&one, &other).await;
    tokio::select! {
        biased;
        () = one.run(async {}) => panic!("its quantum is spent"),
        () = std::future::ready(()) => {}
    }
    one.run(async {}).await;
}

#[tokio::test]
async fn a_panic_in_a_released_task_holds_up_no_other() {
    let scheduler = FairScheduler::with_clock(clock);
    let (one, other) = (scheduler.share(), scheduler.share());
    exhaust(&one, &other).await;
    let tasks = Tasks::new("test").on(one);
    tasks.spawn("bad", async { panic!("on purpose") });
    for _ in 0..10 {
        tasks.spawn("good", async {});
    }
    tasks.wait().await;
}

#[tokio::test(start_paused = true)]
async fn a_flooding_tenant_is_admitted_no_faster_than_the_machine_can_follow() {
    let scheduler = FairScheduler::with_clock(clock);
    let (busy, calm) = (scheduler.share(), scheduler.share());
    let admitted_after = async |share: &Share| {
        let asked_at = tokio::time::Instant::now();
        share.admit().await;
        asked_at.elapsed()
    };
    let be_late =
        || while scheduler.0.queues.here().admission.record_timer(SAMPLE_INTERVAL * 10) < MAX_PAUSE {};
    be_late();
    assert_eq!(admitted_after(&busy).await, Duration::ZERO, "it does not flood");
    // A connection each millisecond takes all of it, until the calm one needs a little.
    for _ in 0..1_000 {
        busy.run(async { advance(Duration::from_millis(1)) }).await;
        assert_eq!(admitted_after(&busy).await, Duration::ZERO, "it is alone");
    }
    for _ in 0..200 {
        calm.run(async { advance(Duration::from_micros(10)) }).await;
        busy.run(async { advance(Duration::from_millis(1)) }).await;
        busy.admit().await;
    }
    be_late();
    assert_eq!(admitted_after(&busy).await, MAX_PAUSE);
    assert_eq!(admitted_after(&calm).await, Duration::ZERO);
    advance(HOLD / 2);
    be_late();
    assert_eq!(admitted_after(&busy).await, MAX_PAUSE, "while it is paced it looks calm");
    advance(HOLD);
    assert_eq!(admitted_after(&busy).await, Duration::ZERO, "it has been calm for long enough");
}

#[test]
fn an_account_is_the_sum_over_the_threads_and_each_thread_has_its_own_credit() {
    let (threads, _running) = Threads::start("test", 2).unwrap();
    let scheduler = FairScheduler::new(&threads);
    let (one, other) = {
        let _inside = threads.enter(threads.next());
        (scheduler.share(), scheduler.share())
    };
    let (tasks, (done, ended)) = (Tasks::new("test").on(Arc::clone(&one)), std::sync::mpsc::channel());
    for thread in threads.iter() {
        let done = done.clone();
        tasks.spawn_on(&threads, thread, "work", async move {
            let started = Instant::now();
            while started.elapsed() < QUANTUM / 2 {
                std::hint::spin_loop();
            }
            done.send(()).unwrap();
        });
    }
    (0..2).for_each(|_| ended.recv_timeout(Duration::from_secs(20)).unwrap());
    // A poll is charged after it has sent, on a preempted thread long after.
    let each = || {
        threads.iter().map(|thread| {
            let share = one.threads.at(thread);
            share.queue.lock().charged(&share.credit).own
        })
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while each().any(|charged| charged < QUANTUM / 2) {
        assert!(Instant::now() < deadline, "{one:?}");
        std::thread::yield_now();
    }
    assert_eq!(one.charged(), each().sum());
    assert_eq!(other.accounts().own, Duration::ZERO);
    assert!(other.accounts().others >= QUANTUM);
}
