//! A running program under test: its output as it is written, its signals, and its exit status.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_sys::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::binaries;

/// Longest wait for a line, and for the exit of a program after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    output: Arc<watch::Sender<Output>>,
}

/// The output of a program so far.
#[derive(Debug, Default)]
struct Output {
    lines: Vec<Line>,
    /// Streams that have ended.
    ended: usize,
}

/// A line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Whether it was written to standard error.
    pub error: bool,
    /// The line, without its end.
    pub text: String,
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit status.
    pub status: ExitStatus,
    /// Everything it wrote.
    pub lines: Vec<Line>,
}

/// `ZTUNNEL_WORKER_THREADS` of the agent at a node: one thread at the first, several at the others, so that tests with two
/// agents have both. A run of the tests with the variable set has the same everywhere.
#[must_use]
pub fn threads(at: usize) -> &'static str {
    static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("ZTUNNEL_WORKER_THREADS").ok());
    CHOSEN.as_deref().unwrap_or(if at == 0 { "1" } else { "3" })
}

impl Process {
    /// Starts a program of this workspace inside a namespace, with this environment and no other, and `input` on its
    /// standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        netns: &Netns,
        program: &str,
        args: &[&str],
        env: &[(&str, &str)],
        input: &str,
    ) -> Result<Self> {
        let mut command = Command::new(binaries::path(program));
        command.args(args).env_clear().envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = netns.run_thread(|| command.spawn())??;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that exits without reading it is judged by its output.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = Arc::new(watch::Sender::default());
        let (out, err) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        read(out, false, Arc::clone(&output))?;
        read(err, true, Arc::clone(&output))?;
        Ok(Self { child, output })
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended; `None` while it runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Everything that it has written so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.output.borrow().lines.clone()
    }

    /// Waits for a line that contains all of these; lines that are already written count.
    ///
    /// # Errors
    /// When there is none in time, or the program has ended without it.
    pub async fn line(&self, parts: &[&str]) -> Result<String> {
        let mut output = self.output.subscribe();
        let found =
            output.wait_for(|output| output.ended == 2 || output.lines.iter().any(|line| line.has(parts)));
        let waited = tokio::time::timeout(PATIENCE, found).await.map(|found| {
            found.map(|output| output.lines.iter().find(|line| line.has(parts)).map(|line| line.text.clone()))
        });
        match waited {
            Ok(Ok(Some(text))) => Ok(text),
            _ => bail!("no line with {parts:?} in\n{}", text(&self.lines())),
        }
    }

    /// Waits until it exits by itself.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(mut self) -> Result<Ended> {
        let mut output = self.output.subscribe();
        let closed = tokio::time::timeout(PATIENCE, output.wait_for(|output| output.ended == 2)).await;
        if closed.is_err() {
            bail!("it did not exit:\n{}", text(&self.lines()));
        }
        let status = self.child.wait()?;
        Ok(Ended { status, lines: self.lines() })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Ends it as Kubernetes would, and returns its output.
    ///
    /// # Errors
    /// When it does not exit in time and with success.
    pub async fn stop(self) -> Result<Vec<Line>> {
        self.signal(Signal::SIGTERM)?;
        let ended = self.ended().await?;
        ensure!(ended.status.success(), "{}:\n{}", ended.status, text(&ended.lines));
        Ok(ended.lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Line {
    fn has(&self, parts: &[&str]) -> bool {
        parts.iter().all(|part| self.text.contains(part))
    }
}

impl Ended {
    /// The lines of standard output, or of standard error.
    #[must_use]
    pub fn stream(&self, error: bool) -> Vec<&str> {
        self.lines.iter().filter(|line| line.error == error).map(|line| line.text.as_str()).collect()
    }
}

/// Lines as one text, for a message.
#[must_use]
pub fn text(lines: &[Line]) -> String {
    lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>().join("\n")
}

/// Collects what a program writes, so that it never blocks on a full pipe. The thread ends with the pipe.
fn read(from: impl Read + Send + 'static, error: bool, output: Arc<watch::Sender<Output>>) -> Result<()> {
    let collect = move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(bytes) = line else { break };
            let text = String::from_utf8_lossy(&bytes).into_owned();
            output.send_modify(|output| output.lines.push(Line { error, text }));
        }
        output.send_modify(|output| output.ended += 1);
    };
    std::thread::Builder::new().name("program output".to_owned()).spawn(collect)?;
    Ok(())
}
