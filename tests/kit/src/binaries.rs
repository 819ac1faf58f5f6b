//! The project's own programs, built before they are started: `cargo test` alone builds no binary of another package.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Environment variable with a folder of programs that are already built.
pub(crate) const VARIABLE: &str = "ISTHMUS_BIN_DIR";

/// Path of a program of this workspace. `ISTHMUS_BIN_DIR` names a folder of programs that are already built; otherwise
/// they are built once, in the tests' own profile and target folder.
///
/// # Panics
/// When the build fails or the program is missing: a test without it would prove nothing.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let path = DIR.get_or_init(folder).join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// The folder of the programs, which are built if necessary.
pub(crate) fn folder() -> PathBuf {
    if let Some(dir) = std::env::var_os(VARIABLE) {
        return dir.into();
    }
    let exe = std::env::current_exe().unwrap_or_default();
    // target/<profile>/deps/<test>: the binaries are two levels up.
    let profile = exe.parent().and_then(Path::parent).map(Path::to_path_buf).unwrap_or_default();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "-p", "isthmus", "-p", "isthmus-cni", "-p", "playground"]);
    build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    if let Some(target) = profile.parent() {
        build.arg("--target-dir").arg(target);
    }
    let status = build.status();
    assert!(
        status.as_ref().is_ok_and(std::process::ExitStatus::success),
        "the programs do not build: {status:?}"
    );
    profile
}
