//! Reading fields of a Kubernetes object that is kept as JSON. Absent and empty are the same, as in Kubernetes.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Kind;

/// `metadata.name`, or the empty string.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `metadata.namespace`, or the empty string.
pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `metadata.uid`, or the empty string.
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// The string at a JSON pointer, or the empty string.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer, or nothing.
pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The strings of a list at a JSON pointer; what is no string is left out.
pub fn texts<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a str> {
    list(object, pointer).iter().filter_map(Value::as_str)
}

/// A label's value.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}

/// An annotation's value.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// A map of strings at a JSON pointer, such as labels or a selector.
pub fn string_map<'a>(object: &'a Value, pointer: &str) -> BTreeMap<&'a str, &'a str> {
    let map = object.pointer(pointer).and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
}

/// Whether every pair of `selector` is among the object's labels.
pub fn has_labels(object: &Value, selector: &BTreeMap<&str, &str>) -> bool {
    selector.iter().all(|(key, value)| label(object, key) == Some(value))
}

/// The kind of the table that the object claims.
pub fn kind(object: &Value) -> Option<&'static Kind> {
    Kind::of(text(object, "/apiVersion"), text(object, "/kind"))
}

/// Whether the object is being deleted.
pub fn is_deleting(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Whether a condition of `status.conditions` is `True`.
pub fn has_condition(object: &Value, kind: &str) -> bool {
    let is = |condition: &Value| text(condition, "/type") == kind && text(condition, "/status") == "True";
    list(object, "/status/conditions").iter().any(is)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_absent_reads_as_empty() {
        let empty = json!({});
        assert_eq!((name(&empty), namespace(&empty), label(&empty, "a")), ("", "", None));
        assert!(list(&empty, "/spec/ports").is_empty());
        assert!(has_labels(&empty, &BTreeMap::new()));
    }

    #[test]
    fn a_selector_needs_every_label() {
        let pod = json!({"metadata": {"labels": {"app": "a", "version": "v1"}}});
        assert!(has_labels(&pod, &BTreeMap::from([("app", "a")])));
        assert!(!has_labels(&pod, &BTreeMap::from([("app", "a"), ("version", "v2")])));
    }
}
