//! Reading Kubernetes manifests: files and folders of YAML documents into JSON objects of known kinds, in the order in
//! which they can be applied. What does not parse is refused with its file and document number. It does not talk to
//! an API server.

pub mod kind;
pub mod object;

use std::path::{Path, PathBuf};

use serde::de::Deserialize as _;
use serde_json::Value;

pub use kind::{KINDS, Kind};

/// Why manifests could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A document is not what it should be.
    #[error("{}: document {document}: {reason}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// Which document of the file, from 1.
        document: usize,
        /// What is wrong.
        reason: Reason,
    },
}

/// What is wrong with one document.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Not YAML, or not a mapping of strings.
    #[error("{0}")]
    Yaml(#[from] yaml_serde::Error),
    /// A scalar or a list where an object should be.
    #[error("is not an object with apiVersion and kind")]
    NotAnObject,
    /// A kind that the playground has no part for.
    #[error("kind {kind:?} of apiVersion {api_version:?} is not one that the playground knows{hint}")]
    UnknownKind {
        /// As written.
        api_version: String,
        /// As written.
        kind: String,
        /// The version under which the kind is known, if it is.
        hint: String,
    },
    /// A field is missing or has a wrong form.
    #[error("{kind} {name:?}: {field} {problem}")]
    Field {
        /// Kind of the object.
        kind: &'static str,
        /// Name of the object, which may be what is missing.
        name: String,
        /// Path of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The objects for one cluster: those of `<dir>/common`, then those of `<dir>/<cluster>`, sorted so that what others
/// need comes first.
///
/// # Errors
/// When a file cannot be read or a document is refused.
pub fn for_cluster(dir: &Path, cluster: &str) -> Result<Vec<Value>, Error> {
    let mut objects = Vec::new();
    for part in parts(cluster) {
        objects.extend(read(&dir.join(part))?);
    }
    in_apply_order(&mut objects);
    Ok(objects)
}

/// The objects for one cluster of a change to a world: as [`for_cluster`], where each part may be missing; of a file, or
/// of a folder without such parts, everything.
///
/// # Errors
/// When a file cannot be read or a document is refused.
pub fn change_for(path: &Path, cluster: &str, clusters: &[String]) -> Result<Vec<Value>, Error> {
    let is_parted =
        path.join("common").is_dir() || clusters.iter().any(|cluster| path.join(cluster).is_dir());
    let mut objects = Vec::new();
    for part in parts(cluster).into_iter().filter(|part| is_parted && path.join(part).is_dir()) {
        objects.extend(read(&path.join(part))?);
    }
    if !is_parted {
        objects = read(path)?;
    }
    in_apply_order(&mut objects);
    Ok(objects)
}

fn parts(cluster: &str) -> [&str; 2] {
    ["common", cluster]
}

/// The objects of a file, or of every `.yaml` and `.yml` file below a folder, in the order of the file names.
///
/// # Errors
/// When a file cannot be read or a document is refused.
pub fn read(path: &Path) -> Result<Vec<Value>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    if !path.is_dir() {
        return parse(path, &std::fs::read_to_string(path).map_err(io)?);
    }
    let entries = std::fs::read_dir(path).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
    let mut paths: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    let mut objects = Vec::new();
    for entry in paths {
        let is_yaml = entry.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if is_yaml || entry.is_dir() {
            objects.extend(read(&entry)?);
        }
    }
    Ok(objects)
}

/// The objects of one text; `path` is only for messages. Empty documents are skipped and `List`s are unfolded.
///
/// # Errors
/// When a document is refused.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Value>, Error> {
    let mut objects = Vec::new();
    for (at, document) in yaml_serde::Deserializer::from_str(text).enumerate() {
        let refuse = |reason| Error::Document { path: path.to_owned(), document: at + 1, reason };
        let value = Value::deserialize(document).map_err(|error| refuse(error.into()))?;
        if value.is_null() {
            continue;
        }
        let items = match value.get("items").filter(|_| object::text(&value, "/kind") == "List") {
            Some(Value::Array(items)) => items.clone(),
            _ => vec![value],
        };
        for mut item in items {
            store_version(&mut item);
            check(&item).map_err(refuse)?;
            objects.push(item);
        }
    }
    Ok(objects)
}

/// Sorts objects so that what others need comes first; equal ones keep their order.
pub fn in_apply_order(objects: &mut [Value]) {
    objects.sort_by_key(|object| object::kind(object).map_or(u8::MAX, Kind::rank));
}

/// An API server stores one version of a kind; manifests may be of another that means the same.
fn store_version(object: &mut Value) {
    let other = Kind::of_other_version(object::text(object, "/apiVersion"), object::text(object, "/kind"));
    if let Some(kind) = other {
        object["apiVersion"] = kind.api_version().into();
    }
}

/// Refuses what no API server would take.
fn check(object: &Value) -> Result<(), Reason> {
    let (api_version, kind) = (object::text(object, "/apiVersion"), object::text(object, "/kind"));
    if api_version.is_empty() || kind.is_empty() {
        return Err(Reason::NotAnObject);
    }
    let Some(known) = Kind::of(api_version, kind) else {
        let hint = Kind::named(kind)
            .map_or_else(String::new, |known| format!(" (it is known as {})", known.api_version()));
        return Err(Reason::UnknownKind { api_version: api_version.to_owned(), kind: kind.to_owned(), hint });
    };
    let bad = |field, problem| {
        Err(Reason::Field { kind: known.kind, name: object::name(object).to_owned(), field, problem })
    };
    if object::name(object).is_empty() {
        return bad("metadata.name", "is missing or no string");
    }
    for (field, pointer) in
        [("metadata.labels", "/metadata/labels"), ("metadata.annotations", "/metadata/annotations")]
    {
        let values =
            object.pointer(pointer).and_then(Value::as_object).into_iter().flat_map(|map| map.values());
        if values.into_iter().any(|value| !value.is_string()) {
            return bad(field, "has a value that is no string (quote it)");
        }
    }
    if object.get("spec").is_some_and(|spec| !spec.is_object() && !spec.is_null()) {
        return bad("spec", "is no object");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
