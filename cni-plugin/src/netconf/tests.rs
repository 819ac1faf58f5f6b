//! Istio's configuration, defaults, and defects by name.

use super::*;

const WHOLE: &str = r#"{"cniVersion":"1.1.0","name":"net","type":"istio-cni",
    "plugin_log_level":"debug","cni_agent_run_dir":"/run/x","ambient_enabled":true,
    "enablement_selectors":[{"podSelector":{"matchLabels":{"a":"b"}},"namespaceSelector":{}}],
    "exclude_namespaces":["kube-system","other"],"pod_namespace":"istio-system","native_nftables":true,
    "enable_ambient_detection_retry":true,"dns":{},"ipam":{},"prevResult":null}"#;

#[test]
fn istios_configuration_is_read() {
    let settings = Settings::parse(WHOLE.as_bytes()).unwrap();
    assert_eq!(settings.log_level, Level::Debug);
    assert_eq!(settings.run_dir, PathBuf::from("/run/x"));
    assert_eq!(settings.node_namespace, "istio-system");
    assert!(settings.enabled && settings.retry);
    assert_eq!(settings.rules.selectors.len(), 1);
    assert!(settings.rules.excludes("other") && !settings.rules.excludes("sample"));
}

#[test]
fn absent_keys_have_the_safe_defaults() {
    let settings = Settings::parse(br#"{"name":"net","type":"isthmus-cni","cni_agent_run_dir":""}"#).unwrap();
    assert_eq!(settings, Settings::default());
    assert!(settings.enabled);
}

#[test]
fn an_invalid_configuration_names_its_field() {
    let with = |rest: &str| format!(r#"{{"name":"n","type":"t",{rest}}}"#);
    let cases = [
        ("nonsense".to_owned(), "not a JSON object"),
        (String::new(), "not a JSON object"),
        ("[]".to_owned(), "not a JSON object"),
        (r#"{"type":"t"}"#.to_owned(), "\"name\""),
        (r#"{"name":"n"}"#.to_owned(), "\"type\""),
        (r#"{"name":5,"type":"t"}"#.to_owned(), "\"name\""),
        (with(r#""cniVersion":"one""#), "\"cniVersion\""),
        (with(r#""exclude_namespaces":"kube-system""#), "\"exclude_namespaces\""),
        (with(r#""ambient_enabled":"yes""#), "\"ambient_enabled\""),
        (with(r#""enablement_selectors":[{"podSelektor":{}}]"#), "podSelektor"),
        (with(r#""prevResult":{"ips":[{"address":"10.0.0.5"}]}"#), "\"prevResult.ips[0]\""),
        (with(r#""prevResult":{"interfaces":5}"#), "\"prevResult.interfaces\""),
        (with(r#""prevResult":5"#), "\"prevResult\""),
    ];
    for (text, named) in cases {
        let error = Settings::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn cni_args_name_the_pod_and_only_valid_names_pass() {
    let pod = PodName::parse("IgnoreUnknown=1;K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep-1;K8S_POD_UID=u")
        .unwrap();
    assert_eq!(pod.unwrap().to_string(), "sample/sleep-1");
    for none in ["", "IgnoreUnknown=1", "K8S_POD_NAME=sleep", "K8S_POD_NAMESPACE=sample;K8S_POD_NAME="] {
        assert_eq!(PodName::parse(none).unwrap(), None, "{none}");
    }
    for bad in ["K8S_POD_NAMESPACE=..;K8S_POD_NAME=a", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b/../c"] {
        assert!(PodName::parse(bad).unwrap_err().to_string().contains("K8S_POD_NAM"), "{bad}");
    }
}

/// How much is logged decides about no pod.
#[test]
fn no_log_level_is_an_error() {
    let parse = |level: &str| {
        let text =
            format!(r#"{{"cniVersion":"1.1.0","name":"net","type":"istio-cni","plugin_log_level":{level}}}"#);
        Settings::parse(text.as_bytes()).unwrap().log_level
    };
    for (level, want) in [
        (r#""default:info,cni:info""#, Level::Info),
        (r#""WARN""#, Level::Warn),
        (r#""loud""#, Level::Info),
        ("7", Level::Info),
        ("null", Level::Info),
        (r#"["debug"]"#, Level::Info),
    ] {
        assert_eq!(parse(level), want, "{level}");
    }
}
