//! Bulk: streams that send as fast as they can, in one direction. It must not know what is reported of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::meter::{Meter, Spent, WARM_UP, pause};
use crate::server::{self, Received, Stop, Task};
use crate::syscalls::Syscalls;
use crate::worlds::World;

/// Running streams.
pub(crate) struct Bulk {
    /// Stops whichever side sends; the other one receives its FIN.
    stop: Stop,
    /// Bytes that arrived.
    pub(crate) received: Received,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Bulk {
    /// Starts streams from the client to the server, or with `down` the other way.
    pub(crate) fn start(world: &World, streams: usize, down: bool) -> Result<Self> {
        // The server's counter and flag are those of a world; only one load runs at a time.
        let (stop, received, task) = if down {
            (Arc::clone(&world.stop), Received::default(), Task::Source)
        } else {
            (Stop::default(), Arc::clone(&world.received), Task::Sink)
        };
        stop.store(false, Ordering::Relaxed);
        let mut bulk = Self { stop, received, threads: Vec::new() };
        for _ in 0..streams {
            let mut stream = server::connect(&world.lab.client, world.blocking, task)?;
            let (stop, received) = (Arc::clone(&bulk.stop), Arc::clone(&bulk.received));
            let work = move || match task {
                Task::Source => server::receive(&mut stream, &received),
                _ => server::send(&mut stream, &stop).and_then(|()| {
                    // Until the server has everything: no byte of this load is in the next figure.
                    server::receive(&mut stream, &AtomicU64::new(0))
                }),
            };
            bulk.threads.push(std::thread::Builder::new().name("bulk".to_owned()).spawn(work)?);
        }
        Ok(bulk)
    }

    /// Ends the streams, and fails when one failed or had ended before.
    pub(crate) fn stop(mut self) -> Result<()> {
        let early = self.threads.iter().any(JoinHandle::is_finished);
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a stream panicked"))?.context("a stream broke")?;
        }
        ensure!(!early, "a stream ended early");
        Ok(())
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Bytes that arrived in a span of time.
pub(crate) fn run(
    world: &World,
    (streams, down): (usize, bool),
    time: Duration,
    syscalls: Option<&Syscalls>,
) -> Result<Spent> {
    let bulk = Bulk::start(world, streams, down)?;
    pause(WARM_UP);
    let count = || bulk.received.load(Ordering::Relaxed);
    let meter = Meter::start(world, syscalls, count)?;
    pause(time);
    let spent = meter.stop(count())?;
    bulk.stop()?;
    Ok(spent)
}
