//! What the commands print, also into a closed pipe. None of these tests builds a world.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Command, Stdio};

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
    command.args(args).arg("--dir").arg(dir).stdin(Stdio::null());
    command
}

/// A folder with logs: more than a pipe holds in one of them.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs/east");
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join("istiod.log"), "a line\n".repeat(100_000)).unwrap();
    std::fs::write(logs.join("apiserver.log"), "its only line\n").unwrap();
    dir
}

#[test]
fn logs_are_listed_and_printed_by_the_beginning_of_a_name() {
    let dir = folder();
    for (args, printed) in
        [(&["logs"][..], "east/apiserver\neast/istiod\n"), (&["logs", "east/api"], "its only line\n")]
    {
        let output = command(dir.path(), args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), printed);
    }
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_error() {
    let dir = folder();
    for args in [&["logs"][..], &["logs", "east/istiod"], &["scenario", "--list"], &["down"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(dir.path(), args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{args:?}: {}: {said}", output.status);
    }
}
