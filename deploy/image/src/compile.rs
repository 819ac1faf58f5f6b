//! Compiles the programs so that the result depends on the sources and the toolchain, and not on the folder, the user or
//! the time.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::commit::Commit;
use crate::packages;

/// Profile of the shipped programs, in the workspace's manifest.
const PROFILE: &str = "image";

/// Builds both programs. Returns the folder that they are in.
///
/// # Errors
/// When cargo fails: it has said why.
pub(crate) fn programs(workspace: &Path, target: &str, commit: &Commit) -> Result<PathBuf> {
    let target_dir = target_dir(workspace)?;
    let prefixes = prefixes(workspace, target, &target_dir)?;
    let rust: Vec<_> =
        prefixes.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
    let c: Vec<_> =
        prefixes.iter().map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display())).collect();
    let variable = |name: &str| format!("{name}_{}", target.replace('-', "_"));
    let status = Command::new(packages::cargo())
        .current_dir(workspace)
        .args(["build", "--locked", "--profile", PROFILE, "--target", target])
        .args(packages::PROGRAMS.iter().flat_map(|program| ["--package", program]))
        .arg("--target-dir")
        .arg(&target_dir)
        // Flags of the user would change what is built.
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", rust.join("\u{1f}"))
        .env(variable("CFLAGS"), c.join(" "))
        .env("ISTHMUS_GIT_REVISION", &commit.revision)
        .env("SOURCE_DATE_EPOCH", commit.time.to_string())
        .status()
        .context("cargo")?;
    ensure!(
        status.success(),
        "cargo build failed; it needs `rustup target add {target}` and a C compiler for musl (Debian: musl-tools)"
    );
    Ok(target_dir.join(target).join(PROFILE))
}

/// A folder of its own, so that builds with other flags do not evict this one's.
fn target_dir(workspace: &Path) -> Result<PathBuf> {
    let base = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    let folder = base.join("image");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

/// Folders whose names depend on the machine, and what the programs say instead. The longest one comes last, since the
/// last that matches counts.
fn prefixes(workspace: &Path, target: &str, target_dir: &Path) -> Result<Vec<(PathBuf, String)>> {
    let inside = packages::inside(workspace, target)?;
    let mut all: Vec<(PathBuf, String)> =
        packages::sources(&inside).into_iter().map(|folder| (folder, "/cargo".to_owned())).collect();
    all.push((workspace.to_owned(), "/isthmus".to_owned()));
    all.push((target_dir.to_owned(), "/target".to_owned()));
    all.sort_by_key(|(folder, _)| folder.as_os_str().len());
    Ok(all)
}
