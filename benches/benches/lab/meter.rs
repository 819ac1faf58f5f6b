//! What a span of load took: time, and the CPU time, context switches and system calls of the agents and the gateway.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isthmus_benches::agents::Agents;
use isthmus_benches::proc::Usage;

use crate::syscalls::{Counting, Syscalls};
use crate::worlds::World;

/// Load before a figure is taken: congestion windows open, tunnels are made.
pub(crate) const WARM_UP: Duration = Duration::from_millis(500);

/// CPU time of an agent at rest in one [`LOOK`].
const REST: Duration = Duration::from_millis(5);
const LOOK: Duration = Duration::from_millis(100);
/// Looks until agents are called restless.
const LOOKS: u32 = 50;

/// A span that has begun.
pub(crate) struct Meter<'a> {
    agents: Option<&'a Agents>,
    counting: Option<Counting>,
    units: u64,
    before: Option<Vec<Usage>>,
    started: Instant,
}

/// A span that has ended.
#[derive(Debug)]
pub(crate) struct Spent {
    /// Units of work done.
    units: f64,
    took: Duration,
    /// Of all of them.
    usage: Option<Usage>,
    syscalls: Option<u64>,
}

/// Waits while others work.
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Waits until the agents have finished what the last load left to them, so that it is in no later figure and takes no
/// time from another subject. Reports agents that do not, or only late.
pub(crate) fn rest(world: &World, after: &str) -> Result<()> {
    let Some(agents) = world.agents.as_ref() else { return Ok(()) };
    let mut before = agents.usage()?;
    for look in 1..=LOOKS {
        pause(LOOK);
        let now = agents.usage()?;
        let spent: Vec<_> =
            now.iter().zip(&before).map(|(now, before)| now.cpu.saturating_sub(before.cpu)).collect();
        if spent.iter().all(|spent| *spent <= REST) {
            if look > 10 {
                println!("  {} came to rest only {:?} after {after}", world.name, LOOK * look);
            }
            return Ok(());
        }
        before = now;
        if look == LOOKS {
            println!(
                "  {} is still at work {:?} after {after}: {spent:?} of CPU in {LOOK:?}",
                world.name,
                LOOK * look
            );
        }
    }
    Ok(())
}

impl<'a> Meter<'a> {
    /// Begins; `units` counts the work that was done before.
    pub(crate) fn start(
        world: &'a World,
        syscalls: Option<&Syscalls>,
        units: impl FnOnce() -> u64,
    ) -> Result<Self> {
        let agents = world.agents.as_ref();
        let counting = match (syscalls, agents) {
            (Some(syscalls), Some(agents)) => Some(syscalls.start(&agents.pids())?),
            _ => None,
        };
        let before = agents.map(Agents::usage).transpose()?;
        Ok(Self { agents, counting, units: units(), before, started: Instant::now() })
    }

    /// Ends; `units` is the count now.
    pub(crate) fn stop(self, units: u64) -> Result<Spent> {
        let took = self.started.elapsed();
        let after = self.agents.map(Agents::usage).transpose()?;
        let syscalls = self.counting.map(Counting::stop).transpose()?;
        let usage = match self.before.zip(after) {
            None => None,
            Some((before, after)) => {
                let mut sum = Usage::default();
                for (before, after) in before.iter().zip(after) {
                    ensure!(after.cpu > before.cpu, "an agent carried nothing");
                    sum.cpu += after.cpu - before.cpu;
                    sum.switches += after.switches.saturating_sub(before.switches);
                }
                Some(sum)
            }
        };
        let units = units.saturating_sub(self.units);
        ensure!(units > 0, "nothing was done in {took:?}");
        Ok(Spent { units: units as f64, took, usage, syscalls })
    }
}

impl Spent {
    /// Units of work per second.
    pub(crate) fn rate(&self) -> f64 {
        self.units / self.took.as_secs_f64()
    }

    /// CPU seconds, context switches and system calls of the agents for `scale` units; what is not known is not a number.
    pub(crate) fn each(&self, scale: f64) -> [f64; 3] {
        let each = |sum: Option<f64>| sum.map_or(f64::NAN, |sum| sum / self.units * scale);
        [
            each(self.usage.map(|usage| usage.cpu.as_secs_f64())),
            each(self.usage.map(|usage| usage.switches as f64)),
            each(self.syscalls.map(|count| count as f64)),
        ]
    }

    /// As [`each`](Self::each) for one unit, the CPU time in microseconds.
    pub(crate) fn micros(&self) -> [f64; 3] {
        let [cpu, switches, syscalls] = self.each(1.0);
        [cpu * 1e6, switches, syscalls]
    }
}
