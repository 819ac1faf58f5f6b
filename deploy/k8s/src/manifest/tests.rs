//! What is read, what is refused, and with which words.

use std::path::Path;

use super::*;

fn refused(text: &str) -> String {
    parse(Path::new("world.yaml"), text).unwrap_err().to_string()
}

#[test]
fn several_documents_and_lists_are_read() {
    let text = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# nothing\n---\n\
        apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n\
        - {apiVersion: v1, kind: Node, metadata: {name: c}}\n";
    let objects = parse(Path::new("world.yaml"), text).unwrap();
    assert_eq!(objects.iter().map(object::name).collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let first = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n";
    for (second, says) in [
        ("a: [1", "world.yaml: document 2: "),
        ("just text", "document 2: is not an object"),
        ("apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}", "\"Job\" of apiVersion \"batch/v1\""),
        ("apiVersion: v1\nkind: Deployment\nmetadata: {name: j}", "it is known as apps/v1"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}", "Pod \"\": metadata.name is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {a: 1}}", "Pod \"p\": metadata.labels"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: [1]", "spec is no object"),
    ] {
        let message = refused(&format!("{first}{second}\n"));
        assert!(message.contains(says), "{message}");
        assert!(message.starts_with("world.yaml: document 2"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let message = read(Path::new("/nonexistent/x.yaml")).unwrap_err().to_string();
    assert!(message.contains("/nonexistent/x.yaml"), "{message}");
}

#[test]
fn the_worlds_own_manifests_are_read_in_apply_order() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests");
    for cluster in ["east", "west"] {
        let objects = for_cluster(&dir, cluster).unwrap();
        let ranks: Vec<u8> = objects.iter().map(|object| object::kind(object).unwrap().rank()).collect();
        assert!(ranks.is_sorted(), "{ranks:?}");
        assert_eq!(object::text(&objects[0], "/kind"), "Namespace");
    }
}
