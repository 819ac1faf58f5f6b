//! As much of JSON Schema as the charts use. Helm has all of it; this is what the ordinary suite checks without helm.

use serde_json::{Map, Value};

/// What the checks below know, and words without a meaning for validity.
const KEYWORDS: [&str; 14] = [
    "$schema",
    "title",
    "description",
    "type",
    "properties",
    "additionalProperties",
    "items",
    "enum",
    "minimum",
    "maximum",
    "required",
    "minLength",
    "maxLength",
    "pattern",
];

/// What is wrong with a value, each with its path.
pub(crate) fn violations(value: &Value, schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check("", value, schema, &mut found);
    found
}

fn check(path: &str, value: &Value, schema: &Value, found: &mut Vec<String>) {
    let schema = schema.as_object().unwrap_or_else(|| panic!("{path}: a schema is an object"));
    if let Some(unknown) = schema.keys().find(|key| !KEYWORDS.contains(&key.as_str())) {
        panic!("{path}: the test does not know the keyword {unknown}");
    }
    if !types(schema).iter().any(|kind| is(value, kind)) {
        found.push(format!("{path}: {value} is not {:?}", types(schema)));
        return;
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        found.push(format!("{path}: {value} is none of {allowed:?}"));
    }
    if let (Some(least), Some(number)) = (schema.get("minimum").and_then(Value::as_f64), value.as_f64())
        && number < least
    {
        found.push(format!("{path}: {value} is less than {least}"));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        match properties.and_then(|known| known.get(key)).or_else(|| schema.get("additionalProperties")) {
            Some(Value::Bool(false)) => found.push(format!("{path}: is not in the schema")),
            Some(Value::Bool(true)) | None => {}
            Some(schema) => check(&path, value, schema, found),
        }
    }
    for (index, value) in value.as_array().into_iter().flatten().enumerate() {
        if let Some(schema) = schema.get("items") {
            check(&format!("{path}[{index}]"), value, schema, found);
        }
    }
}

fn types(schema: &Map<String, Value>) -> Vec<String> {
    match schema.get("type") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => panic!("a schema without a type allows anything"),
    }
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "number" => value.is_number(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        other => panic!("{other} is no type"),
    }
}

#[test]
fn violations_are_found_and_named() {
    let schema = serde_json::json!({
        "type": "object", "additionalProperties": false,
        "properties": {
            "a": {"type": "integer", "minimum": 1},
            "b": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
            "c": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        },
    });
    let good = serde_json::json!({"a": 1, "b": ["x"], "c": {"k": null}});
    assert_eq!(violations(&good, &schema), Vec::<String>::new());
    let bad = serde_json::json!({"a": 0, "b": ["z"], "c": {"k": 1}, "d": true});
    let paths: Vec<_> = violations(&bad, &schema)
        .iter()
        .map(|line| line.split(':').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(paths, [".a", ".b[0]", ".c.k", ".d"]);
}
