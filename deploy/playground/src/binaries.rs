//! Finds the programs that the world starts, and builds them first when it is run from its own workspace.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// This program, also when its file was replaced meanwhile: every process of a world must be the same program.
pub(crate) const OWN: &str = "/proc/self/exe";
/// The agent and its roles.
pub(crate) const ISTHMUS: &str = "isthmus";
/// The CNI plugin.
pub(crate) const CNI: &str = "isthmus-cni";

/// Starts this program again, under its name.
pub(crate) fn own() -> Command {
    let mut command = Command::new(OWN);
    command.arg0("playground");
    command
}

/// Starts a program, which may be this one.
pub(crate) fn command(program: &str) -> Command {
    if program == OWN { own() } else { Command::new(program) }
}

/// The folder that holds [`ISTHMUS`] and [`CNI`]: the one in `ISTHMUS_BIN_DIR`, else freshly built beside this program
/// with this program's own profile.
pub(crate) fn folder() -> anyhow::Result<PathBuf> {
    let folder = match std::env::var_os("ISTHMUS_BIN_DIR") {
        Some(given) => std::path::absolute(PathBuf::from(given))?,
        None => build()?,
    };
    for name in [ISTHMUS, CNI] {
        let file = folder.join(name);
        if !file.is_file() {
            bail!("{} is missing (ISTHMUS_BIN_DIR must hold {ISTHMUS} and {CNI})", file.display());
        }
    }
    Ok(folder)
}

/// The folder of the workspace that this program was compiled in.
pub(crate) fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}

fn build() -> anyhow::Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot find my own program file")?;
    let folder = exe.parent().unwrap_or(&exe);
    // Tests run from `<target>/<profile>/deps`.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let (Some(target), Some(profile)) = (folder.parent(), folder.file_name()) else {
        bail!("{} is not in a cargo target folder; set ISTHMUS_BIN_DIR", exe.display());
    };
    if !workspace().join("Cargo.toml").is_file() {
        bail!("the workspace {} is gone; set ISTHMUS_BIN_DIR", workspace().display());
    }
    let profile = if profile == "debug" { "dev".as_ref() } else { profile };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(&cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "-p", ISTHMUS, "-p", CNI, "--target-dir"])
        .arg(target)
        .arg("--profile")
        .arg(profile)
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {} build; set ISTHMUS_BIN_DIR", Path::new(&cargo).display()))?;
    if !status.success() {
        bail!("cargo build -p {ISTHMUS} -p {CNI} failed: {status}");
    }
    Ok(folder.to_owned())
}
