//! Records the revision that the crate is built from: `ISTHMUS_GIT_REVISION` if set, as in a container build without a
//! repository; otherwise a release build asks git. A debug build does not: every commit would cause a rebuild.

use std::process::Command;

const NO_REPOSITORY: &str = "unknown: built outside a git repository";
const DEBUG: &str = "unknown: debug builds do not look it up";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=ISTHMUS_GIT_REVISION");
    let given = std::env::var("ISTHMUS_GIT_REVISION").ok().filter(|revision| !revision.trim().is_empty());
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let (revision, status) = match given {
        Some(revision) => (revision.trim().to_owned(), "given to the build".to_owned()),
        None if release => repository().unwrap_or_else(|| (NO_REPOSITORY.to_owned(), "unknown".to_owned())),
        None => (DEBUG.to_owned(), "unknown".to_owned()),
    };
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = said(&rustc, &["--version"]).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=ISTHMUS_BUILD_REVISION={revision}");
    println!("cargo::rustc-env=ISTHMUS_BUILD_STATUS={status}");
    println!("cargo::rustc-env=ISTHMUS_BUILD_RUSTC={compiler}");
}

/// The commit that is checked out, and whether files differ from it.
fn repository() -> Option<(String, String)> {
    // An archive unpacked inside another repository must not record that one's commit.
    said("git", &["ls-files", "--error-unmatch", "build.rs"])?;
    let revision = said("git", &["rev-parse", "HEAD"])?;
    // Changes with every commit and every switch to another one.
    if let Some(log) = said("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    let changed = said("git", &["status", "--porcelain", "--untracked-files=no"])?;
    let status = if changed.is_empty() { "Clean" } else { "Modified" };
    Some((revision, status.to_owned()))
}

/// Output of a program, if it exists and succeeded.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
