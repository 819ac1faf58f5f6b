//! Values, schemas and templates of a chart agree: what the schema allows is what has a default and what is read.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::schema::violations;
use crate::{CHARTS, folder, read};

fn yaml(chart: &str, file: &str) -> Value {
    yaml_serde::from_str(&read(chart, file)).unwrap_or_else(|error| panic!("{chart}/{file}: {error}"))
}

fn schema(chart: &str) -> Value {
    serde_json::from_str(&read(chart, "values.schema.json"))
        .unwrap_or_else(|error| panic!("{chart}: {error}"))
}

#[test]
fn the_defaults_are_valid() {
    for chart in CHARTS {
        assert_eq!(violations(&yaml(chart, "values.yaml"), &schema(chart)), Vec::<String>::new(), "{chart}");
    }
}

#[test]
fn every_value_of_the_schema_has_a_default() {
    for chart in CHARTS {
        let (values, schema) = (yaml(chart, "values.yaml"), schema(chart));
        let mut missing = Vec::new();
        compare("", &values, &schema, &mut missing);
        assert_eq!(missing, Vec::<String>::new(), "{chart}: values.yaml is where an operator looks for them");
    }
}

/// Objects that are closed by the schema are known to the last key; `global` is shared with other charts.
fn compare(path: &str, values: &Value, schema: &Value, missing: &mut Vec<String>) {
    if schema["additionalProperties"] != Value::Bool(false) {
        return;
    }
    for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
        match values.get(key) {
            Some(value) => compare(&format!("{path}.{key}"), value, schema, missing),
            None => missing.push(format!("{path}.{key}")),
        }
    }
}

#[test]
fn every_value_is_read_and_every_value_read_exists() {
    for chart in CHARTS {
        let templates = templates(chart);
        let read = values_read(&templates);
        let schema = schema(chart);
        for path in &read {
            let mut at = &schema;
            for key in path.split('.') {
                // Below an object of any content.
                if at.get("properties").is_none() {
                    break;
                }
                let within = &at["properties"];
                assert!(
                    within.get(key).is_some(),
                    "{chart}: a template reads .Values.{path}, which is in no schema"
                );
                at = &within[key];
            }
        }
        // Known for istio's values files, and of no effect.
        let ignored = ["profile", "kind"];
        for key in schema["properties"].as_object().unwrap().keys() {
            let quoted = format!("(list . \"{key}\")");
            let found =
                read.iter().any(|path| path.split('.').next() == Some(key)) || templates.contains(&quoted);
            assert!(found || ignored.contains(&key.as_str()), "{chart}: no template reads .Values.{key}");
        }
    }
}

fn templates(chart: &str) -> String {
    let files = std::fs::read_dir(folder(chart).join("templates")).expect("a chart has templates");
    files.map(|file| std::fs::read_to_string(file.expect("a file").path()).expect("text")).collect()
}

/// `a.b` of each `.Values.a.b`.
fn values_read(templates: &str) -> BTreeSet<String> {
    let path = |text: &str| {
        let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(text.len());
        text[..end].trim_end_matches('.').to_owned()
    };
    templates.split(".Values.").skip(1).map(path).collect()
}

#[test]
fn a_chart_is_of_the_version_that_it_deploys() {
    for chart in CHARTS {
        let about = yaml(chart, "Chart.yaml");
        assert_eq!(about["name"], chart);
        assert_eq!(about["version"], env!("CARGO_PKG_VERSION"), "{chart}");
        assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"), "{chart}");
        let ignored = read(chart, ".helmignore");
        assert!(ignored.contains(".git"), "{chart}");
    }
}
