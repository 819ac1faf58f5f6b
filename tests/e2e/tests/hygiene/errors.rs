//! The catalogue of errors against the code: each text of the page is in the code, each error text of the code and each
//! response flag is in the page.

use anyhow::{Context as _, Result};

use crate::{files, is_rust, is_test};

const PAGE: &str = "agent/docs/errors.md";
const FLAGS: &str = "agent/proxy/src/types.rs";
/// Sources whose texts reach an operator. `agent/sys` wraps the kernel's answers and has no texts of its own.
const SOURCES: [&str; 2] = ["agent/", "cni-plugin/"];
/// Sources whose errors are parts of the texts of others, or only seen by developers.
const INTERNAL: [&str; 3] = ["agent/http2/", "agent/record/", "agent/sys/"];
/// Stands for a variable part.
const VARIABLE: char = '…';

/// The page, and the sources with string literals that are continued on the next line joined.
fn load() -> Result<(String, Vec<(String, String)>)> {
    let files = files()?;
    let page = files.iter().find(|(file, _)| file == PAGE).context("the page")?.1.clone();
    let is_source =
        |file: &str| is_rust(file) && !is_test(file) && SOURCES.iter().any(|folder| file.starts_with(folder));
    let sources = files.into_iter().filter(|(file, _)| is_source(file));
    Ok((page, sources.map(|(file, text)| (file, joined(&text))).collect()))
}

fn joined(text: &str) -> String {
    let mut parts = text.split("\\\n");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |joined, part| joined + part.trim_start())
}

/// The texts in backticks in the first columns of the page's tables.
fn texts(page: &str) -> impl Iterator<Item = &str> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split_once('`')).map(|(text, _)| text)
}

/// Whether a line has the parts of `text` in order.
fn has(line: &str, text: &str) -> bool {
    let mut rest = Some(line);
    for part in text.split(VARIABLE) {
        rest = rest.and_then(|rest| rest.split_once(part)).map(|(_, rest)| rest);
    }
    rest.is_some()
}

/// The text of the `#[error("…")]` that `rest` starts behind, as the page writes it. `None` for a format without text.
fn written(rest: &str) -> Option<String> {
    let literal = rest.trim_start().strip_prefix('"')?;
    let (mut text, mut variable, mut escaped, mut quoted) = (String::new(), false, false, false);
    for char in literal.chars() {
        match char {
            '\\' if !escaped => {
                escaped = true;
                continue;
            }
            '"' if !escaped => break,
            // A backtick cannot be in a code span: what it quotes is written as variable.
            '`' => quoted = !quoted,
            '{' => variable = true,
            '}' => variable = false,
            _ if variable || quoted => {}
            other => text.push(other),
        }
        if (variable || quoted) && !text.ends_with(VARIABLE) {
            text.push(VARIABLE);
        }
        escaped = false;
    }
    text.contains(char::is_alphabetic).then_some(text)
}

#[test]
fn every_text_of_the_catalogue_is_in_the_code() {
    let (page, sources) = load().unwrap();
    let known = |text: &&str| sources.iter().any(|(_, source)| source.lines().any(|line| has(line, text)));
    let unknown: Vec<_> = texts(&page).filter(|text| !known(text)).collect();
    assert!(unknown.is_empty(), "{PAGE} has texts that no source has: {unknown:#?}");
}

#[test]
fn every_error_of_the_code_is_in_the_catalogue() {
    let (page, sources) = load().unwrap();
    let external = |file: &str| !INTERNAL.iter().any(|folder| file.starts_with(folder));
    let missing: Vec<_> = sources
        .iter()
        .filter(|(file, _)| external(file))
        .flat_map(|(file, source)| {
            source.split("#[error(").skip(1).filter_map(written).map(move |text| (file, text))
        })
        .filter(|(_, text)| !texts(&page).any(|known| known == text))
        .collect();
    assert!(missing.is_empty(), "{PAGE} has no row for: {missing:#?}");
}

#[test]
fn every_response_flag_is_in_the_catalogue() {
    let (page, sources) = load().unwrap();
    let types = &sources.iter().find(|(file, _)| file == FLAGS).unwrap().1;
    let (_, body) = types.split_once("impl ResponseFlag {").unwrap();
    let (body, _) = body.split_once("\n}\n").unwrap();
    let flags: Vec<_> = body.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(flags.contains(&"DENY") && flags.len() >= 8, "{flags:?}");
    let missing: Vec<_> = flags.iter().filter(|flag| !texts(&page).any(|text| text == **flag)).collect();
    assert!(missing.is_empty(), "{PAGE} has no row for: {missing:?}");
}
