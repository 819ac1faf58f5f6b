use std::sync::mpsc;
use std::time::Duration;

use super::*;
use crate::fair::FairScheduler;
use crate::task::Tasks;

const SOON: Duration = Duration::from_secs(20);

/// The name of the operating system's thread, and what its tasks take for it.
fn place() -> (String, usize) {
    (std::thread::current().name().unwrap_or_default().to_owned(), Thread::current().index())
}

#[test]
fn a_task_and_what_it_spawns_stay_on_the_thread_that_it_was_started_on() {
    let (threads, _running) = Threads::start("test", 3).unwrap();
    let scheduler = FairScheduler::new(&threads);
    let (share, tasks) = (scheduler.share(), Tasks::new("test"));
    for tasks in [tasks.clone(), tasks.on(share)] {
        for thread in threads.iter() {
            let (seen, places) = mpsc::channel();
            let inner = tasks.clone();
            tasks.spawn_on(&threads, thread, "outer", async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                seen.send(place()).unwrap();
                inner.spawn("inner", async move {
                    tokio::task::yield_now().await;
                    seen.send(place()).unwrap();
                });
            });
            let expected = (format!("test-{}", thread.index()), thread.index());
            for _ in 0..2 {
                assert_eq!(places.recv_timeout(SOON).unwrap(), expected);
            }
        }
    }
}

#[test]
fn entering_a_thread_places_what_is_spawned_there_and_ends() {
    let (threads, _running) = Threads::start("test", 2).unwrap();
    let second = threads.iter().nth(1).unwrap();
    let (seen, places) = mpsc::channel();
    let tasks = Tasks::new("test");
    {
        let _inside = threads.enter(second);
        assert_eq!(Thread::current(), second);
        tasks.spawn("task", async move { seen.send(place()).unwrap() });
    }
    assert_eq!(Thread::current().index(), 0);
    assert_eq!(places.recv_timeout(SOON).unwrap(), ("test-1".to_owned(), 1));
}

#[test]
fn a_group_ends_on_all_threads_with_its_owner() {
    let (threads, _running) = Threads::start("test", 3).unwrap();
    let (tasks, (alive, ended)) = (Tasks::new("test"), mpsc::channel::<()>());
    for thread in threads.iter() {
        let alive = alive.clone();
        tasks.spawn_on(&threads, thread, "forever", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
    }
    drop((tasks, alive));
    assert_eq!(ended.recv_timeout(SOON), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_spinning_thread_is_seen_and_avoided() {
    let (threads, _running) = Threads::start("test", 2).unwrap();
    let tasks = Tasks::new("test");
    let key = Preference::Key(1);
    let usual = threads.choose(key);
    let (stop, stopped) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), mpsc::channel::<()>());
    let spin = Arc::clone(&stop);
    tasks.spawn_on(&threads, usual, "spin", async move {
        let _stopped = stopped.0;
        while !spin.load(Ordering::Relaxed) {
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(1) {
                std::hint::spin_loop();
            }
            tokio::task::yield_now().await;
        }
    });
    let deadline = Instant::now() + SOON;
    while threads.choose(key) == usual {
        assert!(Instant::now() < deadline, "its load is not seen");
        // Longer than a window, so that arrivals alone never are the reason.
        std::thread::sleep(Duration::from_millis(110));
    }
    stop.store(true, Ordering::Relaxed);
    while threads.choose(key) != usual {
        assert!(Instant::now() < deadline, "it is avoided although it is idle");
        std::thread::sleep(Duration::from_millis(110));
    }
}

#[test]
fn dropping_the_owner_ends_the_threads() {
    let (threads, running) = Threads::start("test", 2).unwrap();
    let (tasks, (alive, ended)) = (Tasks::new("test"), mpsc::channel::<()>());
    for thread in threads.iter() {
        let alive = alive.clone();
        tasks.spawn_on(&threads, thread, "forever", async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
    }
    drop((running, alive));
    assert_eq!(ended.recv_timeout(SOON), Err(mpsc::RecvTimeoutError::Disconnected));
}
