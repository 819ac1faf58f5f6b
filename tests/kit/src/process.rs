//! A program that runs while a test looks at it: what it says as it says it, and how it ends.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_sys::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use crate::binaries;

/// Longest wait for a line, and for the end of a program that was told to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: Arc<watch::Sender<Said>>,
}

/// What a program has said so far.
#[derive(Debug, Default)]
struct Said {
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
    /// Everything it said.
    pub lines: Vec<Line>,
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
            // Whoever ends without reading it has other things to say.
            let _ = stdin.write_all(input.as_bytes());
        }
        let said = Arc::new(watch::Sender::default());
        let (out, err) = (child.stdout.take().context("stdout")?, child.stderr.take().context("stderr")?);
        read(out, false, Arc::clone(&said))?;
        read(err, true, Arc::clone(&said))?;
        Ok(Self { child, said })
    }

    /// Everything it has said so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.said.borrow().lines.clone()
    }

    /// Waits for a line that contains all of these, whenever it was said.
    ///
    /// # Errors
    /// When there is none in time, or the program has ended without it.
    pub async fn line(&self, parts: &[&str]) -> Result<String> {
        let mut said = self.said.subscribe();
        let found = said.wait_for(|said| said.ended == 2 || said.lines.iter().any(|line| line.has(parts)));
        let waited = tokio::time::timeout(PATIENCE, found).await.map(|found| {
            found.map(|said| said.lines.iter().find(|line| line.has(parts)).map(|line| line.text.clone()))
        });
        match waited {
            Ok(Ok(Some(text))) => Ok(text),
            _ => bail!("no line with {parts:?} in\n{}", text(&self.lines())),
        }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ended(mut self) -> Result<Ended> {
        let mut said = self.said.subscribe();
        let closed = tokio::time::timeout(PATIENCE, said.wait_for(|said| said.ended == 2)).await;
        if closed.is_err() {
            bail!("it did not end:\n{}", text(&self.lines()));
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

    /// Ends it as Kubernetes would; what it has said.
    ///
    /// # Errors
    /// When it does not end in time and with success.
    pub async fn stop(self) -> Result<Vec<Line>> {
        self.signal(Signal::SIGTERM)?;
        let ended = self.ended().await?;
        ensure!(ended.status.success(), "{}:\n{}", ended.status, text(&ended.lines));
        Ok(ended.lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has ended, which is what is wanted.
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

/// Collects what a program writes, so that a full pipe never holds it up. The thread ends with the pipe.
fn read(from: impl Read + Send + 'static, error: bool, said: Arc<watch::Sender<Said>>) -> Result<()> {
    let collect = move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(bytes) = line else { break };
            let text = String::from_utf8_lossy(&bytes).into_owned();
            said.send_modify(|said| said.lines.push(Line { error, text }));
        }
        said.send_modify(|said| said.ended += 1);
    };
    std::thread::Builder::new().name("program output".to_owned()).spawn(collect)?;
    Ok(())
}
