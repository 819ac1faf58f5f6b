//! Counts the system calls of processes with `perf stat`, where there is a `perf` that may.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use tempfile::TempDir;

const EVENT: &str = "raw_syscalls:sys_enter";
/// Milliseconds for perf to answer.
const PATIENCE: u16 = 5000;

/// A perf that counts system calls.
pub(crate) struct Syscalls(());

/// A running perf.
pub(crate) struct Counting {
    perf: Child,
    control: File,
    answer: File,
    output: PathBuf,
    _dir: TempDir,
}

impl Syscalls {
    /// Tries it on a short command; the error says why not.
    pub(crate) fn available() -> Result<Self> {
        let tried = Command::new("perf")
            .args(["stat", "-x,", "-e", EVENT, "--", "true"])
            .output()
            .context("perf cannot be started")?;
        let text = String::from_utf8_lossy(&tried.stderr);
        ensure!(tried.status.success(), "perf may not: {}", text.trim());
        parse(&text).context("perf counts nothing")?;
        Ok(Self(()))
    }

    /// Counts from now on.
    pub(crate) fn start(&self, pids: &[u32]) -> Result<Counting> {
        let dir = tempfile::tempdir()?;
        let fifo = |name: &str| -> Result<(PathBuf, File)> {
            let path = dir.path().join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            // For both directions: opening one end alone would wait for the other.
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            Ok((path, file))
        };
        let ((control_path, control), (answer_path, answer)) = (fifo("control")?, fifo("answer")?);
        let output = dir.path().join("output");
        let perf = Command::new("perf")
            .args(["stat", "-x,", "-e", EVENT, "--delay=-1", "-p"])
            .arg(pids.iter().map(u32::to_string).collect::<Vec<_>>().join(","))
            .arg(format!("--control=fifo:{},{}", control_path.display(), answer_path.display()))
            .arg("-o")
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut counting = Counting { perf, control, answer, output, _dir: dir };
        counting.ask("enable")?;
        Ok(counting)
    }
}

impl Counting {
    /// The count of all of them.
    pub(crate) fn stop(mut self) -> Result<u64> {
        self.ask("disable")?;
        kill(Pid::from_raw(i32::try_from(self.perf.id())?), Signal::SIGINT)?;
        self.perf.wait()?;
        parse(&std::fs::read_to_string(&self.output)?).context("perf counted nothing")
    }

    fn ask(&mut self, command: &str) -> Result<()> {
        writeln!(self.control, "{command}")?;
        let mut fds = [PollFd::new(self.answer.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut fds, PollTimeout::from(PATIENCE))? == 1, "perf does not answer to {command}");
        // "ack\n", in one piece.
        let mut answer = [0; 16];
        let count = self.answer.read(&mut answer)?;
        ensure!(answer[..count].starts_with(b"ack"), "perf: {:?}", &answer[..count]);
        Ok(())
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Fails when it has exited already.
        let _ = self.perf.kill();
        let _ = self.perf.wait();
    }
}

fn parse(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains(EVENT))?;
    line.split(',').next()?.trim().parse().ok()
}
