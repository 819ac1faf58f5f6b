//! What the verbs do to stored objects: create, replace, patch and delete with Kubernetes' rules on names, versions,
//! status and graceful deletion. Pure over the store; it knows no HTTP.

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use super::admission::{self, Admission};
use super::error::Error;
use super::store::{Key, Tx};
use super::target::Part;
use super::text::{random_suffix, time, uuid};
use crate::manifest::{Kind, object};

/// What the verbs need besides the store.
#[derive(Debug)]
pub(super) struct Context<'a> {
    /// What is filled in and checked per kind.
    pub(super) admission: &'a Admission,
    /// The time that is written into objects.
    pub(super) now: SystemTime,
}

/// How an object is to be deleted.
#[derive(Debug, Default)]
pub(super) struct Deletion {
    /// Seconds that a pod may take to stop; zero removes it at once.
    pub(super) grace: Option<u64>,
    /// The object must have this uid.
    pub(super) uid: Option<String>,
}

/// Creates an object.
///
/// # Errors
/// When it exists, is malformed, or its namespace is not there.
pub(super) fn create(
    tx: &mut Tx<'_>,
    context: &Context<'_>,
    kind: &'static Kind,
    namespace: Option<&str>,
    mut object: Value,
) -> Result<Value, Error> {
    let namespace = identify(kind, namespace, &mut object)?;
    let metadata = metadata_mut(&mut object)?;
    if let (None, Some(prefix)) = (text_of(metadata, "name"), text_of(metadata, "generateName")) {
        metadata.insert("name".to_owned(), Value::String(format!("{prefix}{}", random_suffix())));
    }
    let name = text_of(metadata, "name").unwrap_or_default();
    check_name(kind, &name)?;
    let key = Key::new(kind, &namespace, &name);
    if tx.get(&key).is_some() {
        return Err(Error::AlreadyExists(kind, name));
    }
    for read_only in ["deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "managedFields"] {
        metadata.remove(read_only);
    }
    metadata.insert("uid".to_owned(), Value::String(uuid()));
    metadata.insert("creationTimestamp".to_owned(), Value::String(time(context.now)));
    if kind.namespaced {
        metadata.insert("namespace".to_owned(), Value::String(namespace.clone()));
        check_namespace(tx, kind, &namespace, &name)?;
    } else {
        metadata.remove("namespace");
    }
    if object.get("spec").is_some() {
        object["metadata"]["generation"] = 1.into();
    }
    // A node reports its own status when it registers; any other object starts without one.
    if kind.kind != "Node" {
        object.as_object_mut().map(|fields| fields.remove("status"));
    }
    admission::on_create(context.admission, tx, kind, &mut object)?;
    Ok(Value::clone(&tx.put(&key, object)))
}

/// Puts an object, or its status, in the place of the stored one.
///
/// # Errors
/// When there is none, the resource version is not the current one, or the new object is malformed.
pub(super) fn replace(
    tx: &mut Tx<'_>,
    context: &Context<'_>,
    key: &Key,
    part: Part,
    mut object: Value,
) -> Result<Value, Error> {
    identify(key.kind, Some(&key.namespace), &mut object)?;
    if object::name(&object) != key.name {
        let problem = format!("the object is named {:?}, the path {:?}", object::name(&object), key.name);
        return Err(Error::BadRequest(problem));
    }
    update(tx, context, key, part, object)
}

/// Merges a patch into the stored object or its status.
///
/// # Errors
/// When there is none, the resource version is not the current one, or the outcome is malformed.
pub(super) fn patch(
    tx: &mut Tx<'_>,
    context: &Context<'_>,
    key: &Key,
    part: Part,
    patch: &Value,
) -> Result<Value, Error> {
    if !patch.is_object() {
        return Err(Error::BadRequest("the patch is no object".to_owned()));
    }
    let mut object = Value::clone(&*stored(tx, key)?);
    object["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
    merge(&mut object, patch);
    update(tx, context, key, part, object)
}

/// Deletes an object, or marks a scheduled pod and a namespace for others to finish.
///
/// # Errors
/// When there is none, or it is not the one that was meant.
pub(super) fn delete(
    tx: &mut Tx<'_>,
    context: &Context<'_>,
    key: &Key,
    how: &Deletion,
) -> Result<Value, Error> {
    let current = stored(tx, key)?;
    if how.uid.as_deref().is_some_and(|uid| uid != object::uid(&current)) {
        let problem = format!("its uid is {:?}", object::uid(&current));
        return Err(Error::Conflict(key.kind, key.name.clone(), problem));
    }
    let spec_grace = current.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    let grace = match key.kind.kind {
        "Pod" if object::text(&current, "/spec/nodeName").is_empty() => 0,
        "Pod" => how.grace.or(spec_grace).unwrap_or(30),
        "Namespace" => 1,
        _ => 0,
    };
    if grace == 0 {
        return Ok(tx.remove(key).map_or(Value::Null, |object| Value::clone(&object)));
    }
    let mut object = Value::clone(&current);
    if !object::is_deleting(&object) {
        let at = context.now + Duration::from_secs(grace);
        object["metadata"]["deletionTimestamp"] = Value::String(time(at));
        object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if key.kind.kind == "Namespace" {
            object["status"]["phase"] = "Terminating".into();
        }
    }
    Ok(Value::clone(&tx.put(key, object)))
}

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn update(
    tx: &mut Tx<'_>,
    context: &Context<'_>,
    key: &Key,
    part: Part,
    wanted: Value,
) -> Result<Value, Error> {
    let current = stored(tx, key)?;
    let seen = object::text(&wanted, "/metadata/resourceVersion");
    if !seen.is_empty() && seen != object::text(&current, "/metadata/resourceVersion") {
        let problem = "the object has been modified; please apply your changes to the latest version";
        return Err(Error::Conflict(key.kind, key.name.clone(), problem.to_owned()));
    }
    let mut next = match part {
        Part::Main => with_kept(wanted, &current, "status"),
        Part::Status => Part::status_of(wanted, &current),
    };
    for kept in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let metadata = std::mem::take(&mut next["metadata"]);
        next["metadata"] = with_kept(metadata, &current["metadata"], kept);
    }
    let same_spec = next.get("spec") == current.get("spec");
    let generation = current.pointer("/metadata/generation").and_then(Value::as_u64);
    if let Some(generation) = generation {
        next["metadata"]["generation"] = (generation + u64::from(!same_spec)).into();
    }
    admission::on_update(context.admission, tx, key, &current, &mut next)?;
    Ok(Value::clone(&tx.put(key, next)))
}

impl Part {
    /// The stored object with the status, labels and annotations of the wanted one.
    fn status_of(mut wanted: Value, current: &Value) -> Value {
        let mut next = current.clone();
        if let Some(status) = wanted.get_mut("status") {
            next["status"] = status.take();
        }
        for field in ["labels", "annotations"] {
            let metadata = std::mem::take(&mut next["metadata"]);
            next["metadata"] = with_kept(metadata, &wanted["metadata"], field);
        }
        next
    }
}

/// `object` with one field as in `source`, or without it.
fn with_kept(mut object: Value, source: &Value, field: &str) -> Value {
    match source.get(field) {
        Some(value) => object[field] = value.clone(),
        None => {
            object.as_object_mut().map(|fields| fields.remove(field));
        }
    }
    object
}

fn stored(tx: &Tx<'_>, key: &Key) -> Result<std::sync::Arc<Value>, Error> {
    tx.get(key).ok_or_else(|| Error::NotFound(key.kind, key.name.clone()))
}

/// Checks that an object is of the path's kind and namespace, and fills in what it leaves out. Gives the namespace.
fn identify(kind: &'static Kind, namespace: Option<&str>, object: &mut Value) -> Result<String, Error> {
    let Some(fields) = object.as_object_mut() else {
        return Err(Error::BadRequest("the body is no object".to_owned()));
    };
    for (field, right) in [("apiVersion", kind.api_version()), ("kind", kind.kind.to_owned())] {
        let given = text_of(fields, field).unwrap_or_default();
        if !given.is_empty() && given != right {
            return Err(Error::BadRequest(format!("{field} is {given:?}, the path is for {right:?}")));
        }
        fields.insert(field.to_owned(), Value::String(right));
    }
    let given = text_of(metadata_mut(object)?, "namespace").unwrap_or_default();
    if !kind.namespaced {
        return Ok(String::new());
    }
    match namespace {
        Some(path) if given.is_empty() || given == path => Ok(path.to_owned()),
        Some(path) => {
            let problem = format!("metadata.namespace is {given:?}, the path is for {path:?}");
            Err(Error::BadRequest(problem))
        }
        None => Err(Error::BadRequest(format!("a {} is created in a namespace's path", kind.kind))),
    }
}

fn metadata_mut(object: &mut Value) -> Result<&mut Map<String, Value>, Error> {
    let metadata = object.as_object_mut().map(|fields| fields.entry("metadata").or_insert_with(|| json!({})));
    let bad = || Error::BadRequest("metadata is no object".to_owned());
    metadata.and_then(Value::as_object_mut).ok_or_else(bad)
}

fn text_of(fields: &Map<String, Value>, key: &str) -> Option<String> {
    fields.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

fn check_name(kind: &'static Kind, name: &str) -> Result<(), Error> {
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() {
        return Err(Error::invalid(kind, name, "metadata.name", "name or generateName is required"));
    }
    let ends = name.starts_with(['-', '.']) || name.ends_with(['-', '.']);
    if name.len() > 253 || ends || !name.chars().all(is_good) {
        return Err(Error::invalid(kind, name, "metadata.name", "is no lower-case DNS name"));
    }
    Ok(())
}

fn check_namespace(tx: &Tx<'_>, kind: &'static Kind, namespace: &str, name: &str) -> Result<(), Error> {
    let Some(namespaces) = Kind::named("Namespace") else {
        return Ok(());
    };
    let Some(found) = tx.get(&Key::new(namespaces, "", namespace)) else {
        return Err(Error::NotFound(namespaces, namespace.to_owned()));
    };
    if object::is_deleting(&found) {
        let problem = format!("namespace {namespace} is being terminated");
        return Err(Error::Forbidden(kind, name.to_owned(), problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
