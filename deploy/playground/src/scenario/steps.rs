//! The steps that scenarios are made of: each runs a command against the world and keeps what it showed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Check, command, shown};
use crate::dir::Dir;
use crate::output;
use playground_node::kubelet::Record;
use playground_node::program;
use playground_workloads::request::Outcome;

const STEP: Duration = Duration::from_millis(100);
/// What a client requests by default.
pub(super) const HELLO: &str = "http://helloworld.sample:5000/hello";

/// A scenario that is being played.
pub(crate) struct Steps<'a> {
    dir: &'a Dir,
    manifests: &'a Path,
    name: &'a str,
    checks: Vec<Check>,
}

/// Requests that are being sent from a pod; ends with this.
pub(super) struct Traffic {
    child: Child,
    said: File,
}

/// What became of some requests.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) sent: usize,
    /// How many were not answered with 200.
    pub(super) failed: usize,
    /// The distinct texts of the others.
    pub(super) texts: BTreeSet<String>,
    /// Why the last one failed.
    pub(super) error: Option<String>,
}

// === impl Steps ===

impl<'a> Steps<'a> {
    pub(super) fn new(dir: &'a Dir, manifests: &'a Path, name: &'a str) -> Self {
        Self { dir, manifests, name, checks: Vec::new() }
    }

    pub(super) fn checks(self) -> Vec<Check> {
        self.checks
    }

    /// A manifest of the scenario; the empty name is its folder.
    pub(super) fn own(&self, name: &str) -> PathBuf {
        let folder = self.manifests.join("scenarios").join(self.name);
        if name.is_empty() { folder } else { folder.join(name) }
    }

    /// A manifest of the world.
    pub(super) fn worlds(&self, name: &str) -> PathBuf {
        self.manifests.join(name)
    }

    /// `playground apply`.
    pub(super) fn apply(&self, path: &Path, cluster: &str) -> anyhow::Result<()> {
        self.change("apply", path, cluster)
    }

    /// `playground delete`.
    pub(super) fn delete(&self, path: &Path, cluster: &str) -> anyhow::Result<()> {
        self.change("delete", path, cluster)
    }

    fn change(&self, verb: &str, path: &Path, cluster: &str) -> anyhow::Result<()> {
        output::note(format_args!("$ playground {verb} -f {} --cluster {cluster}", shown(path)));
        let mut command = command(self.dir, verb);
        command.arg("-f").arg(path).args(["--cluster", cluster]).stderr(Stdio::inherit());
        let output = command.output().with_context(|| format!("cannot start {verb}"))?;
        output::note(String::from_utf8_lossy(&output.stdout).trim_end());
        if !output.status.success() {
            bail!("{verb} -f {}: {}", shown(path), output.status);
        }
        Ok(())
    }

    /// Requests from inside a pod, one connection each.
    pub(super) fn ask(&self, pod: &str, url: &str, number: usize) -> anyhow::Result<Answers> {
        output::note(format_args!("$ playground exec {pod} -- playground request {url} -n {number}"));
        let mut command: Command = command(self.dir, "exec");
        command.args([pod, "--", program::OWN, "request", url, "--json", "-n", &number.to_string()]);
        let output = command.output().context("cannot start exec")?;
        let lines = String::from_utf8_lossy(&output.stdout);
        let outcomes = outcomes(&lines)?;
        if outcomes.len() != number {
            bail!(
                "{} of {number} requests from {pod} were reported: {}",
                outcomes.len(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(Answers::of(&outcomes))
    }

    /// Begins to send requests from inside a pod, with these arguments of the client.
    pub(super) fn send(&self, pod: &str, url: &str, args: &[&str]) -> anyhow::Result<Traffic> {
        output::note(format_args!(
            "$ playground exec {pod} -- playground request {url} {} &",
            args.join(" ")
        ));
        let said = tempfile::tempfile().context("cannot keep what a client says")?;
        let mut command = command(self.dir, "exec");
        command.args([pod, "--", program::OWN, "request", url]).args(args);
        // Its standard input ends when we say so, and when we end.
        command.stdin(Stdio::piped()).stdout(said.try_clone()?);
        Ok(Traffic { child: command.spawn().context("cannot start exec")?, said })
    }

    /// Notes what must be true.
    pub(super) fn check(&mut self, name: impl Into<String>, pass: bool, detail: String) {
        self.checks.push(Check { name: name.into(), pass, detail });
    }

    /// Every request is answered, and by exactly these versions.
    pub(super) fn answered_by(&mut self, what: &str, pod: &str, versions: &[&str]) -> anyhow::Result<()> {
        let answers = self.ask(pod, HELLO, 20)?;
        let pass = answers.failed == 0 && answers.versions() == versions.iter().copied().collect();
        self.check(
            format!("{what}: {pod} is answered by {}", versions.join(" and ")),
            pass,
            answers.detail(),
        );
        Ok(())
    }

    /// No request is answered.
    pub(super) fn refused(&mut self, what: &str, pod: &str) -> anyhow::Result<()> {
        let answers = self.ask(pod, HELLO, 5)?;
        self.check(format!("{what}: {pod} is refused"), answers.failed == answers.sent, answers.detail());
        Ok(())
    }

    /// What the kubelet says of a pod.
    pub(super) fn pod(&self, pod: &str) -> anyhow::Result<Record> {
        Record::find(&self.dir.all_pods(), pod)
    }

    /// How many lines of a pod's log contain a text.
    pub(super) fn logged(&self, pod: &Record, text: &str) -> usize {
        let log = fs::read_to_string(self.dir.log(&pod.cluster, &pod.name)).unwrap_or_default();
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// Waits until something holds; whether it did in time.
    pub(super) fn until(&self, patience: Duration, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Instant::now() + patience;
        while !holds(self) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(STEP);
        }
        true
    }
}

// === impl Traffic ===

impl Traffic {
    /// Tells the client that it is enough, and waits for what it says in the end.
    pub(super) fn end(mut self) -> anyhow::Result<String> {
        drop(self.child.stdin.take());
        // Failed requests are a failure of the client's, but told by it.
        self.child.wait().context("cannot wait for the client")?;
        let mut text = String::new();
        self.said.rewind()?;
        self.said.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // After `end` there is nothing left to wait for.
        let _ = self.child.wait();
    }
}

// === impl Answers ===

impl Answers {
    pub(super) fn of(outcomes: &[Outcome]) -> Self {
        let is_good = |outcome: &&Outcome| outcome.status == Some(200);
        let texts = outcomes.iter().filter(is_good).map(|outcome| outcome.body.trim().to_owned()).collect();
        let bad = outcomes.iter().rfind(|outcome| !is_good(outcome));
        let error = bad.map(|outcome| match outcome.status {
            Some(status) => format!("status {status}"),
            None => outcome.error.clone().unwrap_or_default(),
        });
        let failed = outcomes.iter().filter(|outcome| !is_good(outcome)).count();
        Self { sent: outcomes.len(), failed, texts, error }
    }

    /// The versions that have answered: `Hello version: v1, instance: x` is `v1`.
    pub(super) fn versions(&self) -> BTreeSet<&str> {
        let named =
            self.texts.iter().filter_map(|text| text.strip_prefix("Hello version: ")?.split_once(','));
        named.map(|(version, _)| version).collect()
    }

    /// The pods that have answered: `Hello version: v1, instance: x` is `x`.
    pub(super) fn instances(&self) -> BTreeSet<&str> {
        self.texts.iter().filter_map(|text| Some(text.rsplit_once(' ')?.1)).collect()
    }

    pub(super) fn detail(&self) -> String {
        let error = self.error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default();
        let versions: Vec<_> = self.versions().into_iter().collect();
        format!("{} sent, {} failed{error}, answered by [{}]", self.sent, self.failed, versions.join(" "))
    }
}

/// What a client says with `--json`.
pub(super) fn outcomes(lines: &str) -> anyhow::Result<Vec<Outcome>> {
    lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("the client's output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let outcome = |status, body: &str, error: Option<&str>| Outcome {
            status,
            body: body.to_owned(),
            error: error.map(str::to_owned),
            seconds: 0.0,
            kept: false,
        };
        let answers = Answers::of(&[
            outcome(Some(200), "Hello version: v1, instance: a\n", None),
            outcome(Some(200), "Hello version: v1, instance: b\n", None),
            outcome(Some(503), "", None),
            outcome(None, "", Some("refused")),
        ]);
        assert_eq!((answers.sent, answers.failed, answers.texts.len()), (4, 2, 2));
        assert_eq!(answers.detail(), "4 sent, 2 failed (refused), answered by [v1]");
    }
}
