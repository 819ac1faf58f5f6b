//! Round trips on one connection: one after the other, or at a fixed rate beside a bulk sender.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::bulk::Bulk;
use crate::meter::{Meter, Spent, WARM_UP, pause};
use crate::server::{self, ANSWER, REQUEST, Task};
use crate::syscalls::Syscalls;
use crate::worlds::World;

/// Requests per second beside the bulk sender.
const PACE: u32 = 100;

/// A connection with requests of one size.
struct Requester {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Requester {
    fn new(world: &World, request: usize, answer: usize) -> Result<Self> {
        let task = Task::Answer(u32::try_from(request)?, u32::try_from(answer)?);
        let stream = server::connect(&world.lab.client, world.blocking, task)?;
        Ok(Self { stream, request: vec![7; request], answer: vec![0; answer] })
    }

    fn trip(&mut self) -> Result<()> {
        self.stream.write_all(&self.request)?;
        self.stream.read_exact(&mut self.answer).context("no answer")
    }
}

/// Round trips of `size` bytes in each direction: what they took, and each one's time, sorted.
pub(crate) fn run(
    world: &World,
    size: usize,
    time: Duration,
    syscalls: Option<&Syscalls>,
) -> Result<(Spent, Vec<Duration>)> {
    let mut requester = Requester::new(world, size, size)?;
    let warm = Instant::now() + WARM_UP;
    while Instant::now() < warm {
        requester.trip()?;
    }
    let meter = Meter::start(world, syscalls, || 0)?;
    let mut times = Vec::new();
    let mut now = Instant::now();
    let end = now + time;
    while now < end {
        requester.trip()?;
        let done = Instant::now();
        times.push(done - now);
        now = done;
    }
    let spent = meter.stop(times.len() as u64)?;
    times.sort_unstable();
    Ok((spent, times))
}

/// Small requests at a fixed rate beside one bulk stream up: what the stream's bytes took, and each request's time from
/// the moment it was due, sorted.
pub(crate) fn beside_bulk(
    world: &World,
    time: Duration,
    syscalls: Option<&Syscalls>,
) -> Result<(Spent, Vec<Duration>)> {
    let bulk = Bulk::start(world, 1, false)?;
    let mut requester = Requester::new(world, REQUEST, ANSWER)?;
    requester.trip()?;
    pause(WARM_UP);
    let count = || bulk.received.load(Ordering::Relaxed);
    let meter = Meter::start(world, syscalls, count)?;
    let (begun, mut times) = (Instant::now(), Vec::new());
    let number = (time.as_secs_f64() * f64::from(PACE)).ceil();
    for at in (1_u32..).take_while(|at| f64::from(*at) <= number) {
        let due = begun + Duration::from_secs(1) / PACE * at;
        pause(due.saturating_duration_since(Instant::now()));
        requester.trip()?;
        times.push(due.elapsed());
    }
    let spent = meter.stop(count())?;
    bulk.stop()?;
    times.sort_unstable();
    Ok((spent, times))
}

/// Microseconds that `share` of the sorted times are at most.
pub(crate) fn percentile(times: &[Duration], per_cent: usize) -> f64 {
    let at = (times.len() * per_cent / 100).min(times.len().saturating_sub(1));
    times.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}
