//! The licence texts of what is inside, each once, with the names of what it covers. A package whose sources hold no text
//! is covered by the text of a sister from the same repository, or by the Apache licence's where its expression allows
//! it; anything else stops the build, since we may not ship it so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::packages::Package;
use crate::toolchain::Toolchain;

/// File that holds all texts.
const THIRD_PARTY: &str = "THIRD-PARTY";
/// Copyright of Rust's library and of the libraries inside it, as its toolchain ships it.
const RUST: &str = "COPYRIGHT-rust-library.html";
/// musl's notice: the target's files come without it.
const MUSL: &str = include_str!("../licences/musl.txt");
/// How deep below a package's folder texts are looked for: C sources that a package carries have their own.
const DEPTH: usize = 5;
/// A text is no longer than this.
const MAX_TEXT: u64 = 256 * 1024;

/// Documents by name.
///
/// # Errors
/// When a package has no text, and when a file cannot be read.
pub(crate) fn gather(
    inside: &[Package],
    apache: &str,
    toolchain: &Toolchain,
) -> Result<Vec<(String, String)>> {
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let foreign: Vec<_> = inside.iter().filter(|package| !package.own).collect();
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in &foreign {
        found.insert(package.id(), texts_in(&package.folder)?);
    }
    let mut missing = Vec::new();
    for package in &foreign {
        let own = &found[&package.id()];
        let sister = || {
            let same = |other: &&&Package| {
                !package.repository.is_empty()
                    && other.repository == package.repository
                    && other.license == package.license
                    && !found[&other.id()].is_empty()
            };
            foreign.iter().find(same).map(|other| &found[&other.id()])
        };
        match own.is_empty().then(sister).unwrap_or(Some(own)) {
            Some(all) => all.iter().for_each(|text| cover(&mut texts, text, package.id())),
            None if package.license.contains("Apache-2.0") => cover(&mut texts, apache, package.id()),
            None => missing.push(format!("{} ({})", package.id(), package.license)),
        }
    }
    ensure!(missing.is_empty(), "no licence text in the sources of {}", missing.join(", "));
    cover(&mut texts, MUSL, format!("musl {}", toolchain.musl));
    cover(&mut texts, apache, format!("the Rust standard library {}", toolchain.rust));
    let mut documents = vec![(THIRD_PARTY.to_owned(), render(&texts))];
    documents.extend(toolchain.copyright.clone().map(|text| (RUST.to_owned(), text)));
    Ok(documents)
}

/// Texts that differ in line ends and spaces around them only are one.
fn cover(texts: &mut BTreeMap<String, BTreeSet<String>>, text: &str, name: String) {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    texts.entry(lines.join("\n").trim_matches('\n').to_owned()).or_default().insert(name);
}

fn render(texts: &BTreeMap<String, BTreeSet<String>>) -> String {
    let mut sections: Vec<_> = texts.iter().map(|(text, names)| (names, text)).collect();
    sections.sort();
    let mut all =
        "What is inside the programs of this image, and the terms that it comes under.\n".to_owned();
    for (names, text) in sections {
        let names: Vec<_> = names.iter().map(|name| format!("  {name}")).collect();
        all.push_str(&format!("\n{}\n{}\n\n{text}\n", "=".repeat(80), names.join("\n")));
    }
    all
}

/// Every licence text below a folder, in the order of paths.
fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![(folder.to_owned(), 0)]);
    while let Some((folder, depth)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let entry = entry?;
            let (kind, path) = (entry.file_type()?, entry.path());
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() && depth < DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_file() && is_licence(&name) && entry.metadata()?.len() <= MAX_TEXT {
                let bytes = std::fs::read(&path)?;
                found.insert(path, String::from_utf8_lossy(&bytes).into_owned());
            }
        }
    }
    Ok(found.into_values().filter(|text| !text.trim().is_empty()).collect())
}

/// Whether a file is one by its name: `LICENSE`, `LICENSE-MIT`, `license.txt`, `COPYING`, `NOTICE.md`.
fn is_licence(name: &str) -> bool {
    const NAMES: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];
    const SOURCES: [&str; 12] = ["rs", "c", "h", "cc", "go", "py", "pl", "sh", "json", "toml", "yml", "html"];
    let name = name.to_lowercase();
    let (stem, extension) = name.rsplit_once('.').unwrap_or((&name, ""));
    let starts = |known: &str| {
        stem.strip_prefix(known).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
    };
    !SOURCES.contains(&extension) && NAMES.iter().any(|known| starts(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, license: &str, repository: &str, folder: &Path) -> Package {
        Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: license.to_owned(),
            repository: repository.to_owned(),
            folder: folder.to_owned(),
            ..Package::default()
        }
    }

    #[test]
    fn licences_are_known_by_their_names() {
        for yes in
            ["LICENSE", "LICENSE-MIT", "LICENSE_APACHE", "license.txt", "COPYING", "NOTICE.md", "LICENCE"]
        {
            assert!(is_licence(yes), "{yes}");
        }
        for no in ["licenses.rs", "notices", "README.md", "copyright.py", "license.rs", "licensing.md"] {
            assert!(!is_licence(no), "{no}");
        }
    }

    #[test]
    fn a_text_is_there_once_with_all_that_it_covers() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let (a, b, c, d) = (at("a"), at("b"), at("c"), at("d"));
        std::fs::write(a.join("LICENSE"), "terms of a\r\n").unwrap();
        std::fs::create_dir_all(b.join("vendor/x")).unwrap();
        std::fs::write(b.join("vendor/x/LICENSE"), "\nterms of a\n").unwrap();
        let mut inside = vec![
            package("a", "MIT", "r", &a),
            package("b", "MIT", "", &b),
            package("c", "MIT", "r", &c),
            package("d", "MIT OR Apache-2.0", "", &d),
        ];
        let documents = gather(&inside, "apache", &Toolchain::default()).unwrap();
        let text = &documents[0].1;
        assert_eq!(text.matches("terms of a").count(), 1, "{text}");
        assert!(text.contains("  a@1.0.0\n  b@1.0.0\n  c@1.0.0\n\nterms of a\n"), "{text}");
        assert!(text.contains("  d@1.0.0\n  the Rust standard library \n\napache\n"), "{text}");
        inside.push(package("e", "MIT", "", &d));
        let error = gather(&inside, "apache", &Toolchain::default()).unwrap_err().to_string();
        assert!(error.contains("e@1.0.0 (MIT)") && !error.contains("d@"), "{error}");
    }

    /// The real tree: no package without a text, and the C libraries' texts are found.
    #[test]
    fn everything_inside_has_a_text() {
        let workspace = crate::workspace().unwrap();
        let inside = crate::packages::inside(&workspace, crate::TARGET).unwrap();
        let text = &gather(&inside, "apache", &Toolchain::default()).unwrap()[0].1;
        for package in inside.iter().filter(|package| !package.own) {
            assert!(text.contains(&package.id()), "{}", package.id());
        }
        assert!(text.contains("fiat-crypto"), "aws-lc carries it, with a licence of its own");
    }
}
