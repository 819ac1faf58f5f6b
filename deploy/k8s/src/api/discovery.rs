//! What clients read to learn which resources exist.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::error::Error;
use crate::manifest::KINDS;

/// Answers `/api`, `/apis`, `/api/v1`, `/apis/<group>` and `/apis/<group>/<version>`.
///
/// # Errors
/// When there is no such group or version.
pub(super) fn answer(path: &str) -> Result<Value, Error> {
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match segments.as_slice() {
        ["api"] => Ok(json!({"kind": "APIVersions", "versions": ["v1"]})),
        ["apis"] => {
            let names: BTreeSet<&str> =
                KINDS.iter().map(|kind| kind.group).filter(|group| !group.is_empty()).collect();
            let groups: Vec<Value> = names.into_iter().map(describe).collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", version] => resources("", version, path),
        ["apis", group] => {
            let known = KINDS.iter().find(|kind| kind.group == *group && !group.is_empty());
            let known = known.ok_or_else(|| Error::NoSuchPath(path.to_owned()))?;
            let mut group = describe(known.group);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Ok(group)
        }
        ["apis", group, version] => resources(group, version, path),
        _ => Err(Error::NoSuchPath(path.to_owned())),
    }
}

/// A group with its versions, the most stable one first.
fn describe(group: &str) -> Value {
    let versions: BTreeSet<(bool, &str)> = KINDS
        .iter()
        .filter(|kind| kind.group == group)
        .map(|kind| (kind.version.contains("alpha"), kind.version))
        .collect();
    let described = |(_, version): (bool, &str)| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let versions: Vec<Value> = versions.into_iter().map(described).collect();
    json!({"name": group, "preferredVersion": versions.first(), "versions": versions})
}

fn resources(group: &str, version: &str, path: &str) -> Result<Value, Error> {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let kinds: Vec<_> = KINDS.iter().filter(|kind| (kind.group, kind.version) == (group, version)).collect();
    let Some(first) = kinds.first() else {
        return Err(Error::NoSuchPath(path.to_owned()));
    };
    let describe = |name: String, kind: &&crate::manifest::Kind, verbs: &[&str]| {
        json!({
            "name": name, "singularName": kind.kind.to_lowercase(), "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": verbs,
        })
    };
    let mut resources: Vec<Value> =
        kinds.iter().map(|kind| describe(kind.plural.to_owned(), kind, &verbs)).collect();
    resources.extend(
        kinds
            .iter()
            .map(|kind| describe(format!("{}/status", kind.plural), kind, &["get", "patch", "update"])),
    );
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": first.api_version(), "resources": resources,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found() {
        let core = answer("/api/v1").unwrap();
        let names: Vec<&str> =
            core["resources"].as_array().unwrap().iter().filter_map(|kind| kind["name"].as_str()).collect();
        assert!(names.contains(&"pods") && names.contains(&"pods/status"));
        assert_eq!(answer("/apis/apps/v1").unwrap()["groupVersion"], "apps/v1");
        assert_eq!(answer("/apis").unwrap()["groups"].as_array().unwrap().len(), 5);
        let group = answer("/apis/gateway.networking.k8s.io").unwrap();
        assert_eq!(group["versions"].as_array().unwrap().len(), 3);
        assert_eq!(group["preferredVersion"]["version"], "v1");
        assert!(answer("/apis/batch/v1").is_err());
    }
}
