//! The processes that the world starts itself; pods are the kubelets' business.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::Context;
use isthmus_sys::netns::Netns;
use tokio::process::{Child, Command};

use playground_node::program;

/// Lines of a log that are shown when its process fails.
const TAIL: usize = 8;

/// One process with a log.
#[derive(Debug)]
pub(super) struct Process {
    /// `<cluster>/<component>`.
    pub(super) name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts this program with a subcommand in a namespace.
    pub(super) fn start(netns: &Netns, name: String, log: PathBuf, args: &[String]) -> anyhow::Result<Self> {
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::from(program::own());
        command.args(args).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).kill_on_drop(true);
        let child = netns.run(|| command.spawn())?.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, log, child })
    }

    /// How it ended, when it did.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) {
        // It cannot be waited for only when it was already.
        let _ = self.child.wait().await;
    }

    /// The end of its log.
    pub(super) fn tail(&self) -> String {
        tail(&self.log)
    }
}

/// The last lines of a log, indented.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL)..];
    last.iter().map(|line| format!("\n    {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines() {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("x.log");
        let text: String = (0..20).map(|n| format!("line {n}\n")).collect();
        fs::write(&log, text).unwrap();
        let tail = tail(&log);
        assert!(tail.starts_with("\n    line 12\n") && tail.ends_with("line 19"), "{tail}");
    }
}
