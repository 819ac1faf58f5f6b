//! The image's name, as Docker shortens it and as containerd wants it in full.

use std::fmt;

use anyhow::{Result, ensure};

/// `registry/repository:tag`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    repository: String,
    /// The tag alone.
    pub(crate) tag: String,
}

/// Reads a name; `tag` is that of a name without one.
///
/// # Errors
/// When it is no name of an image, or names a digest: an archive is what a digest is computed from.
pub(crate) fn parse(name: &str, tag: &str) -> Result<Reference> {
    // A colon before the last slash is that of a port.
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, tag),
    };
    let valid = |text: &str, also: &str| {
        text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c)) && text.len() <= 255
    };
    let parts = repository.split('/').all(|part| !part.is_empty() && valid(part, "._-:"));
    let lower =
        repository.split('/').skip(1).chain(repository.split('/').take(1).filter(|part| !is_host(part)));
    ensure!(
        parts
            && lower.into_iter().all(|part| part == part.to_lowercase())
            && !tag.is_empty()
            && valid(tag, "._-"),
        "{name:?} is not the name of an image such as isthmus:1.0 or registry.example.com/mesh/isthmus:1.0"
    );
    Ok(Reference { repository: repository.to_owned(), tag: tag.to_owned() })
}

impl Reference {
    /// With registry and repository, as containerd and the kubelet know it.
    pub(crate) fn full(&self) -> String {
        let tag = &self.tag;
        match self.repository.split_once('/') {
            None => format!("docker.io/library/{}:{tag}", self.repository),
            Some((first, _)) if is_host(first) => format!("{}:{tag}", self.repository),
            Some(_) => format!("docker.io/{}:{tag}", self.repository),
        }
    }
}

/// Whether the first part of a name is a registry's.
fn is_host(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost"
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        for (given, short, full) in [
            ("isthmus", "isthmus:1", "docker.io/library/isthmus:1"),
            ("isthmus:x", "isthmus:x", "docker.io/library/isthmus:x"),
            ("mesh/isthmus", "mesh/isthmus:1", "docker.io/mesh/isthmus:1"),
            ("localhost/isthmus", "localhost/isthmus:1", "localhost/isthmus:1"),
            ("r.example:5000/a/b", "r.example:5000/a/b:1", "r.example:5000/a/b:1"),
            ("r.example:5000/a/b:v2", "r.example:5000/a/b:v2", "r.example:5000/a/b:v2"),
        ] {
            let name = parse(given, "1").unwrap();
            assert_eq!((name.to_string(), name.full()), (short.to_owned(), full.to_owned()), "{given}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in ["", "Isthmus", "a//b", "isthmus@sha256:00", "a b", "isthmus:", "isthmus:a/b c"] {
            assert!(parse(bad, "1").is_err(), "{bad:?}");
        }
    }
}
