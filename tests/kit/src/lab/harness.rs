//! Runs each test of a lab binary in a process and namespaces of its own. Command line and report are those of
//! `libtest-mimic`: one filter, `--exact`, `--skip`, `--list`, `--test-threads`, `--nocapture`.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use isthmus_sys::userns;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::binaries;

/// A test: fails by an error or by a panic.
pub type Body = fn() -> anyhow::Result<()>;

/// Longest run of one test, unless `ISTHMUS_TEST_SECONDS` says otherwise: some can be made longer.
const TIME_LIMIT: Duration = Duration::from_secs(180);
/// Exit code of a failed test, as libtest has it.
const FAILED: u8 = 101;
/// First argument of the process that makes the namespaces of one test; the second is the test's name.
const OUTER: &str = "--lab-enter";
/// First argument of the process that runs the test inside them.
const INNER: &str = "--lab-inside";

/// Runs the tests that the command line selects.
#[must_use]
pub fn main(tests: &[(&str, Body)]) -> ExitCode {
    start(tests, false)
}

/// As [`main`], for tests that start programs of this workspace. They are built once, before any test begins, so that
/// the build does not count against a test's time limit.
#[must_use]
pub fn main_with_programs(tests: &[(&str, Body)]) -> ExitCode {
    start(tests, true)
}

fn start(tests: &[(&str, Body)], programs: bool) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [role, name] if role == OUTER => outer(name),
        [role, name] if role == INNER => inner(name, tests),
        _ => run(tests, programs),
    }
}

fn run(tests: &[(&str, Body)], programs: bool) -> ExitCode {
    let arguments = Arguments::from_args();
    let selected = |name: &str| !arguments.is_filtered_out(&Trial::test(name, || Ok(())));
    let build = programs && !arguments.list && tests.iter().any(|(name, _)| selected(name));
    let folder = build.then(binaries::folder).map(Arc::<Path>::from);
    let show_output = arguments.nocapture || arguments.show_output;
    let trial = |name: &str| {
        let (test, folder) = (name.to_owned(), folder.clone());
        Trial::test(name, move || in_own_process(&test, show_output, folder.as_deref()))
    };
    let trials = tests.iter().map(|(name, _)| trial(name)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs one test in its own process; the error is its output.
fn in_own_process(name: &str, show_output: bool, programs: Option<&Path>) -> Result<(), Failed> {
    let start = || {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([OUTER, name]).stdin(Stdio::null());
        command.envs(programs.map(|folder| (binaries::VARIABLE, folder)));
        if show_output {
            command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
        }
        command.output()
    };
    let ended = start().map_err(|error| format!("cannot start the test's process: {error}"))?;
    if ended.status.success() {
        return Ok(());
    }
    let text =
        [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Err(format!("{text}{}", ended.status).into())
}

/// Makes the namespaces, then starts the test as the first process of its PID namespace: when that one ends, the
/// kernel kills all others in it.
fn outer(name: &str) -> ExitCode {
    let enter = || -> anyhow::Result<ExitCode> {
        // Ends this process with the harness, also when that is killed.
        set_pdeathsig(Signal::SIGKILL)?;
        userns::enter()?;
        unshare(CloneFlags::CLONE_NEWPID)?;
        let status = Command::new(std::env::current_exe()?).args([INNER, name]).status()?;
        Ok(status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .map_or_else(|| ExitCode::from(FAILED), ExitCode::from))
    };
    enter().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(FAILED)
    })
}

fn inner(name: &str, tests: &[(&str, Body)]) -> ExitCode {
    let prepared = set_pdeathsig(Signal::SIGKILL);
    // The PIDs of this namespace. A container that masks parts of its own /proc does not allow it; tests do without.
    let _ = mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>);
    let limit = std::env::var("ISTHMUS_TEST_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let limit = limit.map_or(TIME_LIMIT, Duration::from_secs);
    let watch = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        std::thread::sleep(limit);
        eprintln!("error: the test took longer than {limit:?}");
        let _ = std::io::stderr().flush();
        std::process::abort();
    });
    let body = tests.iter().find(|(known, _)| *known == name).map(|(_, body)| *body);
    let outcome = match (prepared, watch, body) {
        (Err(error), ..) => Err(error.into()),
        (_, Err(error), _) => Err(error.into()),
        (.., None) => Err(anyhow::anyhow!("no test is named {name}")),
        (.., Some(body)) => body(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
