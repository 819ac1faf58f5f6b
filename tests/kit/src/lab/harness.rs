//! A libtest look-alike whose tests each run in a process and namespaces of their own.

use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use isthmus_sys::userns;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::binaries;

/// A test: fails by an error or by a panic.
pub type Body = fn() -> anyhow::Result<()>;

/// How long one test may take.
const PATIENCE: Duration = Duration::from_secs(180);
/// What libtest exits with when a test fails.
const FAILED: u8 = 101;
/// First argument of the process that makes the namespaces of one test; the second is the test's name.
const OUTER: &str = "--lab-enter";
/// First argument of the process that runs the test inside them.
const INNER: &str = "--lab-inside";

/// Runs the tests that the command line selects, as libtest would: filters, `--exact`, `--skip`, `--list`,
/// `--nocapture`, `--test-threads`.
#[must_use]
pub fn main(tests: &[(&str, Body)]) -> ExitCode {
    start(tests, false)
}

/// As [`main`], for tests that start programs of this workspace: they are built once, before any test begins, so that
/// no test spends its time on it.
#[must_use]
pub fn main_with_programs(tests: &[(&str, Body)]) -> ExitCode {
    start(tests, true)
}

fn start(tests: &[(&str, Body)], programs: bool) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [role, name] if role == OUTER => outer(name),
        [role, name] if role == INNER => inner(name, tests),
        _ => run(&Options::parse(&args), tests, programs),
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    filters: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    show: bool,
    only_ignored: bool,
    threads: Option<usize>,
}

impl Options {
    /// Flags that libtest knows and that change nothing here are passed over.
    fn parse(args: &[String]) -> Self {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let (flag, inline) =
                arg.split_once('=').map_or((arg.as_str(), None), |(f, v)| (f, Some(v.to_owned())));
            match flag {
                "--exact" => options.exact = true,
                "--list" => options.list = true,
                "--nocapture" | "--no-capture" | "--show-output" => options.show = true,
                "--ignored" => options.only_ignored = true,
                "--skip" => options.skip.extend(inline.or_else(|| args.next().cloned())),
                "--test-threads" => {
                    options.threads = inline.or_else(|| args.next().cloned()).and_then(|n| n.parse().ok());
                }
                "--format" | "--color" | "--logfile" | "-Z" if inline.is_none() => drop(args.next()),
                flag if flag.starts_with('-') => {}
                _ => options.filters.push(arg.clone()),
            }
        }
        options
    }

    fn selects(&self, name: &str) -> bool {
        let matches =
            |pattern: &String| if self.exact { name == pattern } else { name.contains(pattern.as_str()) };
        !self.only_ignored
            && (self.filters.is_empty() || self.filters.iter().any(matches))
            && !self.skip.iter().any(matches)
    }
}

fn run(options: &Options, tests: &[(&str, Body)], programs: bool) -> ExitCode {
    let selected: Vec<&str> =
        tests.iter().map(|(name, _)| *name).filter(|name| options.selects(name)).collect();
    if options.list {
        selected.iter().for_each(|name| println!("{name}: test"));
        println!("\n{} tests, 0 benchmarks", selected.len());
        return ExitCode::SUCCESS;
    }
    let programs = (programs && !selected.is_empty()).then(binaries::folder);
    let programs = programs.as_deref();
    println!("\nrunning {} test{}", selected.len(), if selected.len() == 1 { "" } else { "s" });
    let started = Instant::now();
    let failures = Mutex::new(Vec::new());
    let queue = Mutex::new(selected.iter());
    let workers =
        options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, selected.len().max(1)) {
            scope.spawn(|| {
                while let Some(name) = locked(&queue).next() {
                    let failure = one(name, options.show, programs);
                    println!("test {name} ... {}", if failure.is_none() { "ok" } else { "FAILED" });
                    locked(&failures).extend(failure.map(|output| (*name, output)));
                }
            });
        }
    });
    let failures = std::mem::take(&mut *locked(&failures));
    report(&failures);
    let (failed, passed) = (failures.len(), selected.len() - failures.len());
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {} filtered out; \
         finished in {:.2}s\n",
        tests.len() - selected.len(),
        started.elapsed().as_secs_f64()
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn report(failures: &[(&str, String)]) {
    if failures.is_empty() {
        return;
    }
    println!("\nfailures:\n");
    failures.iter().for_each(|(name, output)| println!("---- {name} stdout ----\n{output}"));
    println!("\nfailures:");
    failures.iter().for_each(|(name, _)| println!("    {name}"));
}

/// Runs one test in its own process; what it said when it failed.
fn one(name: &str, show: bool, programs: Option<&Path>) -> Option<String> {
    let command = |role| -> std::io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([role, name]).stdin(Stdio::null());
        command.envs(programs.map(|folder| (binaries::VARIABLE, folder)));
        Ok(command)
    };
    let outcome = command(OUTER).and_then(|mut command| {
        if show {
            command.status().map(|status| (status, Vec::new(), Vec::new()))
        } else {
            command.output().map(|done| (done.status, done.stdout, done.stderr))
        }
    });
    match outcome {
        Ok((status, ..)) if status.success() => None,
        Ok((status, out, err)) => {
            let text = [out, err].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            Some(format!("{text}{status}\n"))
        }
        Err(error) => Some(format!("cannot start the test's process: {error}\n")),
    }
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
    let watch = std::thread::Builder::new().name("watchdog".to_owned()).spawn(|| {
        std::thread::sleep(PATIENCE);
        eprintln!("error: the test took longer than {PATIENCE:?}");
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

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Options {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_command_line_of_libtest_is_understood() {
        let options = parse("pod --exact --test-threads=3 --color always --skip host -q");
        assert_eq!(options.filters, ["pod"]);
        assert_eq!(options.skip, ["host"]);
        assert_eq!((options.exact, options.threads), (true, Some(3)));
        assert!(parse("--test-threads 1 --nocapture").show);
    }

    #[test]
    fn filters_select_by_part_or_exactly() {
        assert!(parse("").selects("pod_in"));
        assert!(parse("pod").selects("pod_in"));
        assert!(!parse("pod --exact").selects("pod_in"));
        assert!(!parse("--skip in").selects("pod_in"));
        assert!(!parse("--ignored").selects("pod_in"));
    }
}
