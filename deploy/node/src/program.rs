//! Starting programs, this one among them: every process of the playground is the same program with another subcommand.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// This program, also when its file was replaced meanwhile: every process of a world must be the same program.
pub const OWN: &str = "/proc/self/exe";

/// Starts this program again, under its name.
#[must_use]
pub fn own() -> Command {
    let mut command = Command::new(OWN);
    command.arg0("playground");
    command
}

/// Starts a program, which may be [`OWN`].
#[must_use]
pub fn command(program: &str) -> Command {
    if program == OWN { own() } else { Command::new(program) }
}

/// A program of the system, by its name.
#[must_use]
pub fn in_path(program: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|file| file.is_file())
}
