//! The floors of the crates: a crate imports only from strictly lower floors, and siblings never see each other. Cargo
//! alone enforces neither for crates that could be compiled either way round.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, ensure};
use serde::Deserialize;

/// Every package of the workspace with its floor.
const FLOORS: [(&str, u8); 31] = [
    ("isthmus-proto", 0),
    ("isthmus-sys", 0),
    ("isthmus-rt", 0),
    ("isthmus-record", 0),
    ("isthmus-http2", 0),
    ("isthmus-model", 1),
    ("isthmus-state", 2),
    ("isthmus-identity", 2),
    ("isthmus-hbone", 2),
    ("isthmus-kit", 2),
    ("isthmus-proxy", 3),
    ("isthmus-dns", 3),
    ("isthmus-control", 3),
    ("isthmus-inpod", 3),
    ("isthmus-handover", 3),
    ("isthmus-node", 3),
    ("isthmus-install", 3),
    ("isthmus-gateway-api", 3),
    ("isthmus-admin", 4),
    ("isthmus-cni", 4),
    ("isthmus", 5),
    ("isthmus-e2e", 6),
    ("isthmus-benches", 6),
    ("isthmus-fuzz", 6),
    ("isthmus-charts", 6),
    ("isthmus-image", 6),
    ("playground-k8s", 6),
    ("playground-workloads", 6),
    ("playground-istiod", 7),
    ("playground-node", 7),
    ("playground", 8),
];

/// Package → packages of ours that it imports (tests' imports are not laws).
fn imports() -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let ours = |dependency: &Dependency| dependency.path.is_some() && dependency.kind.is_none();
    let names = |all: Vec<Dependency>| all.into_iter().filter(ours).map(|one| one.name).collect();
    Ok(packages()?.into_iter().map(|package| (package.name, names(package.dependencies))).collect())
}

/// The names of all packages.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FLOORS.into_iter().map(|(name, _)| name)
}

/// The source folder of a package and the file at its root.
pub(crate) fn sources(package: &str) -> anyhow::Result<(PathBuf, String)> {
    let all = packages()?;
    let found = all.into_iter().find(|one| one.name == package).context("no such package")?;
    let folder = found.manifest_path.parent().context("no folder")?.join("src");
    let root = ["lib.rs", "main.rs"].into_iter().find(|root| folder.join(root).exists());
    Ok((folder, root.context("no lib.rs and no main.rs")?.to_owned()))
}

fn packages() -> anyhow::Result<Vec<Package>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output =
        Command::new(cargo).args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
    Ok(metadata.packages)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    path: Option<String>,
    kind: Option<String>,
}

/// What breaks the law, in words.
fn violations(imports: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let floors: BTreeMap<_, _> = FLOORS.into_iter().collect();
    let mut found = Vec::new();
    for (importer, imported) in imports {
        let Some(floor) = floors.get(importer.as_str()) else {
            found.push(format!("{importer} has no floor"));
            continue;
        };
        for lower in imported {
            match floors.get(lower.as_str()) {
                Some(below) if below < floor => {}
                below => found.push(format!("{importer} (floor {floor}) imports {lower} (floor {below:?})")),
            }
        }
    }
    found
}

#[test]
fn crates_import_from_lower_floors_only() {
    let imports = imports().unwrap();
    assert_eq!(imports.len(), FLOORS.len(), "a package came or went: give it a floor");
    assert_eq!(violations(&imports), Vec::<String>::new());
}

#[test]
fn an_import_sideways_or_upwards_is_found() {
    let mut imports = imports().unwrap();
    imports.get_mut("isthmus-proxy").unwrap().push("isthmus-inpod".to_owned());
    assert_eq!(violations(&imports).len(), 1);
    imports.get_mut("isthmus-model").unwrap().push("isthmus-state".to_owned());
    assert_eq!(violations(&imports).len(), 2);
}

/// With `RUST_BACKTRACE=1`, as charts set it, the first error that captures a backtrace costs the process tens of
/// megabytes, and its text may not fit where the error is sent. Errors of our programs capture none.
#[test]
fn no_error_of_our_programs_captures_a_backtrace() {
    const CAPTURING: [&str; 5] = ["anyhow", "color-eyre", "eyre", "miette", "snafu"];
    let shipped = |name: &str| FLOORS.iter().any(|(known, floor)| *known == name && *floor <= 5);
    for package in packages().unwrap().into_iter().filter(|package| shipped(&package.name)) {
        if package.name == "isthmus-kit" {
            continue;
        }
        let imported = |one: &&Dependency| one.kind.is_none() && CAPTURING.contains(&one.name.as_str());
        let found: Vec<_> = package.dependencies.iter().filter(imported).map(|one| &one.name).collect();
        assert!(found.is_empty(), "{} imports {found:?}", package.name);
        let mut folders = vec![package.manifest_path.parent().unwrap().join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let text = std::fs::read_to_string(&path).unwrap();
                    assert!(!text.contains("Backtrace"), "{} captures one", path.display());
                }
            }
        }
    }
}
