//! Finds the programs that the world starts, and builds them first when it is run from its own workspace.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, bail};

/// The agent and its roles.
pub(crate) const ISTHMUS: &str = "isthmus";
/// The CNI plugin.
pub(crate) const CNI: &str = "isthmus-cni";

/// A cluster or node with another program as its agent, as on the command line: `west-2=/usr/local/bin/ztunnel`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentProgram {
    /// A cluster's name or a node's.
    pub(crate) place: String,
    pub(crate) path: PathBuf,
}

impl FromStr for AgentProgram {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (place, path) = text.split_once('=').ok_or("not of the form <cluster or node>=<path>")?;
        let path = std::fs::canonicalize(path).map_err(|error| format!("{path}: {error}"))?;
        if !path.is_file() {
            return Err(format!("{} is not a file", path.display()));
        }
        Ok(Self { place: place.to_owned(), path })
    }
}

impl fmt::Display for AgentProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.place, self.path.display())
    }
}

impl AgentProgram {
    /// The one for a node, if any: its own, else its cluster's.
    pub(crate) fn of<'a>(all: &'a [Self], cluster: &str, node: &str) -> Option<&'a Self> {
        let named = |name: &str| all.iter().rev().find(|program| program.place == name);
        named(node).or_else(|| named(cluster))
    }
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
    // This package is named too: it has features in common with theirs, and cargo compiles a dependency anew for every
    // other set of features.
    let status = Command::new(&cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "-p", env!("CARGO_PKG_NAME"), "-p", ISTHMUS, "-p", CNI, "--target-dir"])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_own_agent_goes_before_its_clusters() {
        let exe = std::env::current_exe().unwrap();
        let given = |place: &str| format!("{place}={}", exe.display()).parse::<AgentProgram>().unwrap();
        let all = [given("west-2"), given("west"), given("east-1")];
        assert_eq!(AgentProgram::of(&all, "west", "west-2"), Some(&all[0]));
        assert_eq!(AgentProgram::of(&all, "west", "west-1"), Some(&all[1]));
        assert_eq!(AgentProgram::of(&all, "east", "east-2"), None);
        assert_eq!(all[0].to_string().parse(), Ok(given("west-2")));
        assert!("west".parse::<AgentProgram>().unwrap_err().contains("form"));
        assert!("west=/no/such".parse::<AgentProgram>().unwrap_err().starts_with("/no/such: "));
    }
}
