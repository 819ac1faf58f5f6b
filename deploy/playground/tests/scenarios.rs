//! The scenarios as a user plays them. Each passes, and none leaves a process behind, not even when it is killed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Worlds are independent, but they are many processes: one at a time is fast enough, and fair to slow machines.
static ONE: Mutex<()> = Mutex::new(());

fn scenario(dir: &Path, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
    command.arg("scenario").arg("--dir").arg(dir).args([name, "--json"]).stdin(Stdio::null());
    command
}

/// How many processes name the folder in their command line.
fn processes(dir: &Path) -> usize {
    let wanted = dir.to_str().unwrap().as_bytes();
    let lines = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = lines.map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
    lines.filter(|line| line.windows(wanted.len()).any(|window| window == wanted)).count()
}

fn until_gone(dir: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while processes(dir) > 0 {
        assert!(Instant::now() < deadline, "{} processes are left", processes(dir));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn passes(name: &str) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let output = scenario(dir.path(), name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(report["pass"], true, "{report:#}\n{said}");
    assert!(report["checks"].as_array().unwrap().len() >= 3, "{report:#}");
    assert!(said.contains("pushed to") && said.contains("$ playground apply -f "), "{said}");
    until_gone(dir.path());
}

#[test]
fn failover() {
    passes("failover");
}

#[test]
fn two_cluster_policy() {
    passes("two-cluster-policy");
}

#[test]
fn strict() {
    passes("strict");
}

#[test]
fn trust_domain_alias() {
    passes("trust-domain-alias");
}

#[test]
fn plaintext_gateway() {
    passes("plaintext-gateway");
}

#[test]
fn rollout() {
    passes("rollout");
}

#[test]
fn a_program_that_is_not_there_is_told_and_the_scenario_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let output = scenario(dir.path(), "prometheus").env("PATH", dir.path()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success() && report["pass"] == false, "{report:#}");
    assert!(report["error"].as_str().unwrap().contains("apt-get install prometheus"), "{report:#}");
}

#[test]
fn a_killed_scenario_leaves_nothing() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let mut played =
        scenario(dir.path(), "failover").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(90);
    while !dir.path().join("world.json").is_file() {
        assert!(Instant::now() < deadline && played.try_wait().unwrap().is_none(), "no world");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(processes(dir.path()) > 10);
    played.kill().unwrap();
    played.wait().unwrap();
    until_gone(dir.path());
}

#[test]
fn a_scenario_that_does_not_exist_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let refused = scenario(dir.path(), "nothing").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("plaintext-gateway"), "{said}");
}
