//! Bulk: streams that send as fast as they can, in one direction. It must not know what is reported of them.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use crate::meter::{Meter, Spent, WARM_UP, pause};
use crate::server::{self, CHUNK, Received, Task};
use crate::syscalls::Syscalls;
use crate::worlds::World;

/// Running streams.
pub(crate) struct Bulk {
    stop: Arc<AtomicBool>,
    /// Bytes that arrived.
    pub(crate) received: Received,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
    down: bool,
}

impl Bulk {
    /// Starts streams from the client to the server, or with `down` the other way.
    pub(crate) fn start(world: &World, streams: usize, down: bool) -> Result<Self> {
        // The sink of the server counts for a world; only one load runs at a time.
        let received = if down { Received::default() } else { Arc::clone(&world.received) };
        let mut bulk =
            Self { stop: Arc::default(), received, streams: Vec::new(), threads: Vec::new(), down };
        for _ in 0..streams {
            let task = if down { Task::Source } else { Task::Sink };
            let mut stream = server::connect(&world.lab.client, world.blocking, task)?;
            bulk.streams.push(stream.try_clone()?);
            let (stop, received) = (Arc::clone(&bulk.stop), Arc::clone(&bulk.received));
            let work = move || {
                if down { server::receive(&mut stream, &received) } else { send(&mut stream, &stop) }
            };
            bulk.threads.push(std::thread::Builder::new().name("bulk".to_owned()).spawn(work)?);
        }
        Ok(bulk)
    }

    /// Ends the streams, and fails when one had failed before.
    pub(crate) fn stop(mut self) -> Result<()> {
        let broken = self.threads.iter().any(JoinHandle::is_finished);
        self.end();
        for thread in self.threads.drain(..) {
            let ended = thread.join().map_err(|_| anyhow!("a stream panicked"))?;
            // A sender is stopped in the middle of nothing; a receiver by the shutdown of its socket.
            if broken || !self.down {
                ended.context("a stream broke")?;
            }
        }
        anyhow::ensure!(!broken, "a stream ended early");
        Ok(())
    }

    fn end(&self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.down {
            for stream in &self.streams {
                // Fails when the server closed it already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.end();
    }
}

fn send(stream: &mut TcpStream, stop: &AtomicBool) -> std::io::Result<()> {
    let chunk = vec![7; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Both)
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
