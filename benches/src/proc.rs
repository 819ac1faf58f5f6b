//! Memory, CPU time and context switches of a process, and CPU time of a thread, from the kernel.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident now.
    pub resident: u64,
    /// Resident at most, since the start or since [`forget_peak`].
    pub peak: u64,
    /// The resident part that is private and anonymous.
    pub anonymous: u64,
}

/// Memory of a process.
///
/// # Errors
/// When there is no such process.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Memory {
        resident: field(&status, "VmRSS:")?,
        peak: field(&status, "VmHWM:")?,
        anonymous: field(&status, "RssAnon:")?,
    })
}

/// What the threads of a process have used since they started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time.
    pub cpu: Duration,
    /// Context switches, voluntary and not.
    pub switches: u64,
}

/// What the threads of a process have used; threads that ended are not in it.
///
/// # Errors
/// When there is no such process.
pub fn usage(pid: u32) -> Result<Usage> {
    let mut sum = Usage::default();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Some((cpu, switches)) = thread_usage(&thread?.path())? else { continue };
        sum.cpu += cpu;
        sum.switches += switches;
    }
    Ok(sum)
}

/// `None` when the thread ended since its name was read.
fn thread_usage(thread: &Path) -> Result<Option<(Duration, u64)>> {
    let read = |name| match fs::read_to_string(thread.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Ok(None),
        Err(error) => Err(error),
    };
    let (Some(times), Some(status)) = (read("schedstat")?, read("status")?) else { return Ok(None) };
    let nanos = times.split_ascii_whitespace().next().context("schedstat")?.parse()?;
    let count = |name: &str| -> Result<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(name));
        Ok(value.with_context(|| name.to_owned())?.trim().parse()?)
    };
    let switches = count("voluntary_ctxt_switches:")? + count("nonvoluntary_ctxt_switches:")?;
    Ok(Some((Duration::from_nanos(nanos), switches)))
}

/// Resets the peak.
///
/// # Errors
/// When there is no such process.
pub fn forget_peak(pid: u32) -> Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn field(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}

/// The processor time that the calling thread has had.
///
/// # Panics
/// When the kernel has no such clock; Linux has.
#[must_use]
pub fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap_or_else(|error| panic!("{error}"));
    Duration::from(time)
}
