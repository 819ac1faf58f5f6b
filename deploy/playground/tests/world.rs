//! The playground as a user runs it: both topologies end well, a world that stays can be used and ended, and none leaves
//! a process or a network namespace behind, not even when it is killed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Worlds are independent, but they are many processes: one at a time is fast enough, and fair to slow machines.
static ONE: Mutex<()> = Mutex::new(());

/// A folder for one world; whatever happens, the world ends with the test.
struct TestWorld {
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl TestWorld {
    fn new() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { dir: tempfile::tempdir().unwrap(), _one: one }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
        let (subcommand, rest) = match args {
            [first, rest @ ..] if !first.starts_with('-') => (Some(first), rest),
            _ => (None, args),
        };
        command.args(subcommand).arg("--dir").arg(self.dir.path()).args(rest).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end and shows what it said if it failed.
    fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}\n{said}\n{}", output.status, text(&output));
        output
    }

    /// The network namespaces of the processes whose command line names this world's folder, and how many those are.
    fn processes(&self) -> (BTreeSet<String>, usize) {
        let wanted = self.dir.path().to_str().unwrap().as_bytes();
        let mut found = (BTreeSet::new(), 0);
        for process in std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()) {
            let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
            if line.windows(wanted.len()).any(|window| window == wanted) {
                found.1 += 1;
                found.0.extend(namespace(&process));
            }
        }
        found
    }
}

impl Drop for TestWorld {
    fn drop(&mut self) {
        let _ = self.command(&["down"]).output();
    }
}

fn namespace(process: &Path) -> Option<String> {
    Some(std::fs::read_link(process.join("ns/net")).ok()?.to_string_lossy().into_owned())
}

/// Every network namespace in which some process of the machine is.
fn namespaces() -> BTreeSet<String> {
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| namespace(&entry.path())).collect()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a condition holds; an error when it does not in time.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in 30 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A whole run shows what it must and leaves nothing.
fn passes(topology: &str) {
    let world = TestWorld::new();
    let before = namespace(Path::new("/proc/self"));
    let report: Value =
        serde_json::from_slice(&world.run(&["--json", "--topology", topology]).stdout).unwrap();
    assert_eq!(report["topology"], topology);
    assert_eq!(report["pass"], true, "{report:#}");
    for requests in &report["requests"].as_array().unwrap()[..2] {
        assert_eq!((&requests["sent"], &requests["failed"]), (&20.into(), &0.into()), "{requests:#}");
        let answers: Vec<_> = requests["answers"].as_object().unwrap().keys().collect();
        for version in ["Hello version: v1,", "Hello version: v2,"] {
            assert!(answers.iter().any(|answer| answer.starts_with(version)), "{version} {answers:?}");
        }
    }
    let rows = report["workloads"]["west"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["name"].as_str().unwrap().starts_with("east/SplitHorizonWorkload/")));
    assert_eq!(world.processes().1, 0);
    assert_eq!(before, namespace(Path::new("/proc/self")));
}

#[test]
fn multi_primary_passes() {
    passes("multi-primary");
}

#[test]
fn primary_remote_passes() {
    passes("primary-remote");
}

#[test]
fn a_world_stays_until_down() {
    let world = TestWorld::new();
    world.run(&["up"]);
    let again = world.command(&["up"]).output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("playground down"), "{again:?}");
    let status: Value = serde_json::from_slice(&world.run(&["status", "--json"]).stdout).unwrap();
    let pods = status["pods"].as_array().unwrap();
    assert!(pods.len() >= 20 && pods.iter().all(|pod| pod["ready"] == true), "{status:#}");
    let exe = env!("CARGO_BIN_EXE_playground");
    let asked =
        world.run(&["exec", "west/sleep", "--", exe, "request", "http://helloworld.sample:5000/hello"]);
    assert!(text(&asked).starts_with("Hello version: v"), "{asked:?}");
    let failed = world.command(&["exec", "east/sleep", "--", "sh", "-c", "exit 7"]).output().unwrap();
    assert_eq!(failed.status.code(), Some(7));
    assert!(text(&world.run(&["logs"])).contains("east/apiserver\n"));
    assert!(text(&world.run(&["logs", "east/ztunnel"])).contains("agent started"));
    policy(&world, exe);
    let (inside, processes) = world.processes();
    assert!(processes > 10 && inside.len() > 10, "{processes} {inside:?}");
    world.run(&["down"]);
    assert_eq!(world.processes().1, 0);
    until("namespaces to end", || namespaces().is_disjoint(&inside));
}

/// A policy in west is in force soon after it is applied, and no more soon after it is deleted: `client` never belongs
/// to the mesh, so v2 stops and starts to answer it.
fn policy(world: &TestWorld, exe: &str) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/policies/only-east-sleep.yaml");
    let url = "http://helloworld.sample:5000/hello";
    let answered = || {
        let args = ["exec", "west/client", "--", exe, "request", url];
        world.command(&args).output().unwrap().status.success()
    };
    assert!(answered());
    let pushed = text(&world.run(&["apply", "-f", file, "--cluster", "west"]));
    assert!(pushed.contains("new      Authorization sample/only-east-sleep"), "{pushed}");
    until("the policy to be in force", || !answered());
    world.run(&["exec", "west/sleep", "--", exe, "request", "-n", "10", url]);
    let pushed = text(&world.run(&["delete", "-f", file, "--cluster", "west"]));
    assert!(pushed.contains("gone     Authorization sample/only-east-sleep"), "{pushed}");
    until("the policy to be gone", answered);
}

#[test]
fn a_killed_run_leaves_nothing_and_the_next_one_works() {
    let world = TestWorld::new();
    for stage in ["networks", "control planes", "pods"] {
        let progress = tempfile::NamedTempFile::new().unwrap();
        let log = progress.reopen().unwrap();
        let mut run = world.command(&[]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let said = || std::fs::read_to_string(progress.path()).unwrap();
        until(stage, || said().contains(&format!("] {stage}:")));
        let (inside, _) = world.processes();
        run.kill().unwrap();
        run.wait().unwrap();
        // The kernel ends the rest by itself, a moment later.
        until("processes to end", || world.processes().1 == 0);
        let own = namespace(Path::new("/proc/self")).unwrap();
        until("namespaces to end", || namespaces().intersection(&inside).all(|left| *left == own));
    }
    world.run(&["--json"]);
}

#[test]
fn a_bad_manifest_is_named_before_anything_starts() {
    let world = TestWorld::new();
    let manifests = tempfile::tempdir().unwrap();
    for part in ["common", "east", "west"] {
        std::fs::create_dir(manifests.path().join(part)).unwrap();
    }
    std::fs::write(
        manifests.path().join("east/bad.yaml"),
        "apiVersion: v1\nkind: Pot\nmetadata: {name: x}\n",
    )
    .unwrap();
    let refused = world.command(&["--manifests", manifests.path().to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("bad.yaml") && said.contains("Pot"), "{said}");
    assert!(!said.contains("networks"), "{said}");
}

/// In a user namespace of its own the setting of the system can be tried without touching the system's.
#[test]
fn forbidden_user_namespaces_are_named_before_anything_is_built() {
    let world = TestWorld::new();
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces && \
                  exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "sh", "-c", forbid, "sh", env!("CARGO_BIN_EXE_playground")]);
    let refused = command.arg("--dir").arg(world.dir.path()).stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("user.max_user_namespaces is 0"), "{said}");
    assert!(said.contains("sysctl") && !said.contains("building"), "{said}");
}
