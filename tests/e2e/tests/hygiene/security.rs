//! SECURITY.md against the tree: each promise names at least one test, and each of them exists.

use anyhow::{Context as _, Result};

use crate::{files, is_rust};

const PAGE: &str = "SECURITY.md";
/// The part of the page whose tables are promises.
const PROMISES: (&str, &str) = ("## What is promised\n", "\n## What is not promised\n");

/// A test as the page names it: `-p PACKAGE --lib NAME` or `-p PACKAGE --test TARGET NAME`.
#[derive(Debug)]
struct Named<'a> {
    package: &'a str,
    /// `None`: a unit test.
    target: Option<&'a str>,
    name: &'a str,
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        match words.as_slice() {
            ["-p", package, "--lib", name] => Some(Self { package, target: None, name }),
            ["-p", package, "--test", target, name] => Some(Self { package, target: Some(target), name }),
            _ => None,
        }
    }

    /// Whether a file belongs to the target, `folder` being the package's.
    fn is_in(&self, folder: &str, file: &str) -> bool {
        let Some(file) = file.strip_prefix(folder) else { return false };
        match self.target {
            None => file.starts_with("src/"),
            Some(target) => {
                file == format!("tests/{target}.rs") || file.starts_with(&format!("tests/{target}/"))
            }
        }
    }

    /// Whether a source has it as a test of the standard harness, or names it in a lab's list of tests.
    fn is_in_source(&self, source: &str) -> bool {
        let header = format!("fn {}()", self.name);
        let lines: Vec<_> = source.lines().map(str::trim).collect();
        let attributed = lines.iter().enumerate().any(|(at, line)| {
            let mut above = lines[..at].iter().rev().take_while(|line| line.starts_with("#["));
            line.contains(&header)
                && above.any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
        });
        let list = source.split_once("lab::tests![").and_then(|(_, rest)| rest.split_once(']'));
        let listed = |(list, _): (&str, &str)| {
            list.split(',').any(|entry| entry.trim().rsplit("::").next() == Some(self.name))
        };
        attributed || list.is_some_and(listed)
    }
}

/// The folder of a package, with a slash at the end.
fn folder_of<'f>(files: &'f [(String, String)], package: &str) -> Option<&'f str> {
    let name = format!("\nname = \"{package}\"\n");
    let manifest = files.iter().find(|(file, text)| file.ends_with("Cargo.toml") && text.contains(&name))?;
    manifest.0.strip_suffix("Cargo.toml")
}

fn exists(files: &[(String, String)], test: &Named<'_>) -> bool {
    folder_of(files, test.package).is_some_and(|folder| {
        files.iter().any(|(file, text)| is_rust(file) && test.is_in(folder, file) && test.is_in_source(text))
    })
}

#[test]
fn every_promise_names_tests_that_exist() {
    let check = || -> Result<Vec<String>> {
        let files = files()?;
        let page = &files.iter().find(|(file, _)| file == PAGE).context("the page")?.1;
        let (_, rest) = page.split_once(PROMISES.0).context("the promises")?;
        let (promises, _) = rest.split_once(PROMISES.1).context("their end")?;
        let rows =
            promises.lines().filter(|line| line.starts_with("| ") && *line != "| promise | shown by |");
        let mut wrong = Vec::new();
        for row in rows {
            let (promise, tests) = row.trim_matches(['|', ' ']).rsplit_once(" | ").context("two columns")?;
            let named: Vec<_> = tests.split('`').skip(1).step_by(2).collect();
            if named.is_empty() {
                wrong.push(format!("no test for: {promise}"));
            }
            for text in named {
                if !Named::parse(text).is_some_and(|test| exists(&files, &test)) {
                    wrong.push(text.to_owned());
                }
            }
        }
        anyhow::ensure!(promises.matches("\n| ").count() > 20, "the tables are not read");
        Ok(wrong)
    };
    let wrong = check().unwrap();
    assert!(wrong.is_empty(), "{PAGE} names what is no test: {wrong:#?}");
}

#[test]
fn a_name_that_is_no_test_is_found() {
    let file = |path: &str, text: &str| (path.to_owned(), text.to_owned());
    let files = [
        file("a/b/Cargo.toml", "[package]\nname = \"isthmus-b\"\n"),
        file(
            "a/b/src/deep/tests.rs",
            "#[test]\nfn unit() {\n}\n    #[tokio::test(start_paused = true)]\n#[ignore]\nasync fn timed() {}\n",
        ),
        file("a/b/src/lib.rs", "fn helper() {}\n"),
        file("a/b/tests/one.rs", "#[test]\nfn whole() {}\n"),
        file(
            "a/b/tests/lab/main.rs",
            "lab::main(&lab::tests![\n    listed,\n    part::apart\n])\nfn unlisted() -> Result<()> {}\n",
        ),
    ];
    for (text, want) in [
        ("-p isthmus-b --lib unit", true),
        ("-p isthmus-b --lib timed", true),
        ("-p isthmus-b --test one whole", true),
        ("-p isthmus-b --test lab listed", true),
        ("-p isthmus-b --test lab apart", true),
        ("-p isthmus-b --lib helper", false),
        ("-p isthmus-b --lib whole", false),
        ("-p isthmus-b --lib uni", false),
        ("-p isthmus-b --test other whole", false),
        ("-p isthmus-b --test lab unlisted", false),
        ("-p isthmus-c --lib unit", false),
        ("cargo test -p isthmus-b --lib unit", false),
    ] {
        assert_eq!(Named::parse(text).is_some_and(|test| exists(&files, &test)), want, "{text}");
    }
}
