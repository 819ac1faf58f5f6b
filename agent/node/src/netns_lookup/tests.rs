use super::*;

const UID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
fn pod() -> PodRef {
    PodRef { uid: UID.into(), namespace: "sample".into(), name: "a".into(), service_account: "sa".into() }
}

const CONTAINER: &str = "6d4b1c9e2f7a8053b1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f3a4";

#[test]
fn the_start_time_is_parsed_after_any_command_name() {
    let fields: Vec<_> = (3..=30).map(|field| field.to_string()).collect();
    for command in ["sh", "a b", "x) R 1 (y"] {
        assert_eq!(start_time(&format!("7 ({command}) {}", fields.join(" "))), Some(22), "{command}");
    }
    assert_eq!(start_time(""), None);
}

#[test]
fn no_namespace_is_found_without_processes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("1")).unwrap();
    std::fs::write(dir.path().join("1/cgroup"), format!("0::/kubepods/pod{UID}/{CONTAINER}")).unwrap();
    let queries = [NetnsQuery { pod: pod(), ips: vec!["10.0.0.5".parse().unwrap()], containers: Vec::new() }];
    let host = Netns::current().unwrap().id();
    assert!(find(dir.path(), host, &queries).is_empty());
    assert!(find(&dir.path().join("gone"), host, &queries).is_empty());
}
