//! Arbitrary standard input and `CNI_ARGS`.

use serde_json::{Value, json};

use super::*;

/// Every key, with values of every type that JSON has.
fn document(bytes: &[u8]) -> Value {
    let mut document = json!({"cniVersion": "1.0.0", "name": "n", "type": "istio-cni"});
    let keys = [
        "cniVersion",
        "name",
        "type",
        "capabilities",
        "runtimeConfig",
        "ipam",
        "dns",
        "prevResult",
        "plugin_log_level",
        "cni_agent_run_dir",
        "ambient_enabled",
        "pod_namespace",
        "enable_ambient_detection_retry",
        "enablement_selectors",
        "exclude_namespaces",
        "another",
    ];
    let values = [
        json!(null),
        json!(true),
        json!(-1),
        json!(""),
        json!("debug"),
        json!([]),
        json!(["a", "b"]),
        json!({}),
        json!({"type": "host-local", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.1/24"}]}),
        json!([{"podSelector": {"matchLabels": {"a": "b"}}}]),
        json!({"ips": [{"address": "10.0.0.1/99"}], "routes": [{"dst": "x"}], "dns": {"search": 1}}),
        json!(1e300),
    ];
    for pair in bytes.chunks_exact(2) {
        let value = values[usize::from(pair[1]) % values.len()].clone();
        document[keys[usize::from(pair[0]) % keys.len()]] = value;
    }
    document
}

#[test]
fn any_bytes_parse_or_name_stdin() {
    bolero::check!().with_max_len(256).for_each(|bytes: &[u8]| {
        let _ = Settings::parse(bytes);
        let document = document(bytes);
        if let Err(error) = Settings::parse(document.to_string().as_bytes()) {
            assert!(error.to_string().contains("stdin"), "the message names nothing: {error}");
        }
    });
    assert!(Settings::parse(document(&[]).to_string().as_bytes()).is_ok());
}

#[test]
fn any_pod_name_that_parses_is_safe_in_a_url() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        for args in [text.to_string(), format!("K8S_POD_NAMESPACE={text};K8S_POD_NAME=p")] {
            if let Ok(Some(pod)) = PodName::parse(&args) {
                // Both become parts of a URL's path.
                let path = format!("{pod}");
                assert_eq!(path.matches('/').count(), 1, "{path:?}");
                assert!(!path.contains("..") || !path.starts_with('.'), "{path:?}");
                assert!(
                    path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%".contains(&byte)),
                    "{path:?}"
                );
            }
        }
    });
}
