//! Which packages are inside the programs, as cargo resolves them for the target: what is needed at build time only, and
//! macros, leave nothing in a program.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// The packages that are shipped.
pub(crate) const PROGRAMS: [&str; 2] = ["isthmus", "isthmus-cni"];

/// One package inside.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    /// Its name in the registry.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// SPDX expression.
    pub(crate) license: String,
    /// Where its sources come from.
    pub(crate) repository: String,
    /// Folder of its sources.
    pub(crate) folder: PathBuf,
    /// Whether it is of this workspace.
    pub(crate) own: bool,
    /// SHA-256 of the registry's archive, in hexadecimal; empty for our own.
    pub(crate) checksum: String,
    /// `name@version` of the packages inside that it imports.
    pub(crate) imports: Vec<String>,
}

impl Package {
    /// `name@version`.
    pub(crate) fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }
}

/// The cargo that runs us, or the one in the path.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Every package inside the programs, by name and version.
///
/// # Errors
/// When cargo fails, and when its answers contradict each other.
pub(crate) fn inside(workspace: &Path, target: &str) -> Result<Vec<Package>> {
    let mut tree = vec!["tree", "--locked", "--target", target, "--edges", "normal,no-proc-macro"];
    tree.extend(["--prefix", "none", "--format", "{p}"]);
    tree.extend(PROGRAMS.iter().flat_map(|program| ["--package", program]));
    let listed = listed(&run(workspace, &tree)?);
    let metadata =
        run(workspace, &["metadata", "--locked", "--format-version", "1", "--filter-platform", target])?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    let sums = checksums(&std::fs::read_to_string(workspace.join("Cargo.lock"))?);
    let found = join(&listed, metadata, &sums);
    ensure!(
        found.len() == listed.len(),
        "cargo tree has {} packages, metadata {}",
        listed.len(),
        found.len()
    );
    Ok(found)
}

/// Folders below which the registry's sources lie.
pub(crate) fn sources(inside: &[Package]) -> BTreeSet<PathBuf> {
    let foreign = inside.iter().filter(|package| !package.own);
    foreign.filter_map(|package| package.folder.parent().map(Path::to_owned)).collect()
}

/// The part that all those folders share: cargo's home, as a rule.
pub(crate) fn cargo_home(inside: &[Package]) -> PathBuf {
    let mut folders = sources(inside).into_iter();
    let first = folders.next().unwrap_or_else(|| PathBuf::from("/nowhere"));
    folders.fold(first, |shared, folder| {
        shared.ancestors().find(|prefix| folder.starts_with(prefix)).map(Path::to_owned).unwrap_or(shared)
    })
}

fn run(workspace: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(cargo()).current_dir(workspace).args(args).output().context("cargo")?;
    ensure!(output.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// `name@version` of each line `name vVERSION …`.
fn listed(tree: &str) -> BTreeSet<String> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some(format!("{}@{}", words.next()?, words.next()?.strip_prefix('v')?))
    };
    tree.lines().filter_map(line).collect()
}

fn join(listed: &BTreeSet<String>, metadata: Metadata, sums: &BTreeMap<String, String>) -> Vec<Package> {
    let id = |one: &Described| format!("{}@{}", one.name, one.version);
    let names: BTreeMap<String, String> =
        metadata.packages.iter().map(|one| (one.id.clone(), id(one))).collect();
    let mut imports: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in metadata.resolve.nodes {
        let wanted = |one: &Import| one.dep_kinds.iter().any(|kind| kind.kind.is_none());
        let all = node.deps.iter().filter(|one| wanted(one)).filter_map(|one| names.get(&one.pkg));
        let mut all: Vec<_> = all.filter(|name| listed.contains(*name)).cloned().collect();
        all.sort();
        imports.insert(node.id, all);
    }
    let mut found: Vec<Package> = Vec::new();
    for one in metadata.packages.into_iter().filter(|one| listed.contains(&id(one))) {
        let name = id(&one);
        found.push(Package {
            own: one.source.is_none(),
            checksum: sums.get(&name).cloned().unwrap_or_default(),
            imports: imports.remove(&one.id).unwrap_or_default(),
            folder: one.manifest_path.parent().unwrap_or_else(|| Path::new("/")).to_owned(),
            license: one.license.unwrap_or_default().replace('/', " OR ").replace("  ", " "),
            repository: one.repository.unwrap_or_default(),
            name: one.name,
            version: one.version,
        });
    }
    found.sort();
    found
}

/// Checksums of a lock file by `name@version`. Cargo writes one key a line, in this order.
fn checksums(lock: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let (mut name, mut version) = (String::new(), String::new());
    for line in lock.lines() {
        let Some((key, value)) = line.split_once(" = ") else { continue };
        let value = value.trim_matches('"').to_owned();
        match key {
            "name" => name = value,
            "version" => version = value,
            "checksum" => drop(found.insert(format!("{name}@{version}"), value)),
            _ => {}
        }
    }
    found
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Described>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Described {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Import>,
}

#[derive(Deserialize)]
struct Import {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_cargo_tree_are_read_whatever_follows_the_version() {
        let tree = "a v1.0.0 (/src/a)\n\nb v2.1.0+x\nb v2.1.0+x (*)\n";
        assert_eq!(listed(tree), ["a@1.0.0", "b@2.1.0+x"].map(str::to_owned).into());
    }

    #[test]
    fn checksums_belong_to_the_package_above_them() {
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"b\"\nversion = \"2.0.0\"\n\
                    source = \"registry\"\nchecksum = \"00ff\"\n";
        assert_eq!(checksums(lock), BTreeMap::from([("b@2.0.0".to_owned(), "00ff".to_owned())]));
    }

    /// The real workspace: what is shipped is in, what only builds or tests it is not.
    #[test]
    fn the_packages_inside_are_those_of_the_programs() {
        let inside = inside(&crate::workspace().unwrap(), crate::TARGET).unwrap();
        let has = |name: &str| inside.iter().any(|package| package.name == name);
        for name in ["isthmus", "isthmus-cni", "rustls", "aws-lc-sys"] {
            assert!(has(name), "{name} is missing");
        }
        for name in ["tempfile", "isthmus-kit", "criterion", "protox", "serde_derive", "isthmus-image"] {
            assert!(!has(name), "{name} is in no program");
        }
        for package in inside.iter().filter(|package| !package.own) {
            assert_eq!(package.checksum.len(), 64, "{}", package.name);
            assert!(!package.license.is_empty(), "{}", package.name);
        }
        let agent = inside.iter().find(|package| package.name == "isthmus").unwrap();
        assert!(
            agent.imports.iter().any(|import| import.starts_with("isthmus-proxy@")),
            "{:?}",
            agent.imports
        );
    }
}
