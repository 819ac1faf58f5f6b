//! The enrolment rule as a table, and selectors as Kubernetes defines them.

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

struct Case {
    what: &'static str,
    namespace: &'static str,
    pod: &'static [(&'static str, &'static str)],
    annotations: &'static [(&'static str, &'static str)],
    host_network: bool,
    namespace_labels: &'static [(&'static str, &'static str)],
    want: Decision,
}

const PLAIN: Case = Case {
    what: "",
    namespace: "sample",
    pod: &[],
    annotations: &[],
    host_network: false,
    namespace_labels: &[],
    want: Decision::Skip(Reason::NotSelected),
};
const AMBIENT: &[(&str, &str)] = &[(DATAPLANE_MODE, "ambient")];
const NONE: &[(&str, &str)] = &[(DATAPLANE_MODE, "none")];

const CASES: &[Case] = &[
    Case { what: "no label at all", ..PLAIN },
    Case { what: "pod label", pod: AMBIENT, want: Decision::Enrol, ..PLAIN },
    Case { what: "namespace label", namespace_labels: AMBIENT, want: Decision::Enrol, ..PLAIN },
    Case { what: "pod says none", pod: NONE, namespace_labels: AMBIENT, ..PLAIN },
    Case {
        what: "pod label wins over the namespace's none",
        pod: AMBIENT,
        namespace_labels: NONE,
        want: Decision::Enrol,
        ..PLAIN
    },
    Case {
        what: "an unknown value of the pod leaves it to the namespace",
        pod: &[(DATAPLANE_MODE, "other")],
        namespace_labels: AMBIENT,
        want: Decision::Enrol,
        ..PLAIN
    },
    Case {
        what: "host network",
        pod: AMBIENT,
        host_network: true,
        want: Decision::Skip(Reason::HostNetwork),
        ..PLAIN
    },
    Case {
        what: "sidecar, whatever the annotation's value",
        pod: AMBIENT,
        annotations: &[(SIDECAR_STATUS, "")],
        want: Decision::Skip(Reason::Sidecar),
        ..PLAIN
    },
    Case {
        what: "excluded namespace, even with labels",
        namespace: "kube-system",
        pod: AMBIENT,
        namespace_labels: AMBIENT,
        want: Decision::Skip(Reason::ExcludedNamespace),
        ..PLAIN
    },
    Case {
        what: "the data plane in the system namespace",
        namespace: "istio-system",
        pod: &[("app", "ztunnel"), (DATAPLANE_MODE, "ambient")],
        want: Decision::Skip(Reason::DataPlane),
        ..PLAIN
    },
    Case {
        what: "the same label elsewhere is an ordinary pod",
        pod: &[("app", "ztunnel"), (DATAPLANE_MODE, "ambient")],
        want: Decision::Enrol,
        ..PLAIN
    },
];

#[test]
fn the_default_rule_decides_each_row_of_the_table() {
    let rules = Rules::default();
    for case in CASES {
        let (pod, annotations) = (labels(case.pod), labels(case.annotations));
        let facts = PodFacts {
            namespace: case.namespace,
            labels: &pod,
            annotations: &annotations,
            host_network: case.host_network,
        };
        assert_eq!(rules.decide(facts, &labels(case.namespace_labels)), case.want, "{}", case.what);
    }
}

#[test]
fn selectors_mean_what_kubernetes_means() {
    let one = labels(&[("a", "1")]);
    let cases = [
        (r"{}", true),
        (r#"{"matchLabels":{"a":"1"}}"#, true),
        (r#"{"matchLabels":{"a":"2"}}"#, false),
        (r#"{"matchLabels":{"a":"1","b":"1"}}"#, false),
        (r#"{"matchExpressions":[{"key":"a","operator":"In","values":["1","2"]}]}"#, true),
        (r#"{"matchExpressions":[{"key":"b","operator":"In","values":["1"]}]}"#, false),
        (r#"{"matchExpressions":[{"key":"a","operator":"NotIn","values":["1"]}]}"#, false),
        (r#"{"matchExpressions":[{"key":"b","operator":"NotIn","values":["1"]}]}"#, true),
        (r#"{"matchExpressions":[{"key":"a","operator":"Exists"}]}"#, true),
        (r#"{"matchExpressions":[{"key":"b","operator":"Exists"}]}"#, false),
        (r#"{"matchExpressions":[{"key":"a","operator":"DoesNotExist"}]}"#, false),
        (r#"{"matchExpressions":[{"key":"b","operator":"DoesNotExist"}]}"#, true),
        (r#"{"matchLabels":{"a":"1"},"matchExpressions":[{"key":"b","operator":"Exists"}]}"#, false),
    ];
    for (text, want) in cases {
        let selector: LabelSelector = serde_json::from_str(text).unwrap();
        assert_eq!(selector.matches(&one), want, "{text}");
        let again: LabelSelector = serde_json::from_str(&serde_json::to_string(&selector).unwrap()).unwrap();
        assert_eq!(again, selector, "{text}");
    }
}

#[test]
fn an_invalid_selector_is_refused_and_names_its_defect() {
    let cases = [
        // A misspelt key must not become "matches everything".
        (r#"{"matchLabel":{"a":"1"}}"#, "matchLabel"),
        (r#"{"matchExpressions":[{"key":"a","operator":"Near"}]}"#, "Near"),
        (r#"{"matchExpressions":[{"key":"a","operator":"In"}]}"#, "needs values"),
        (r#"{"matchExpressions":[{"key":"a","operator":"Exists","values":["1"]}]}"#, "takes no values"),
    ];
    for (text, named) in cases {
        let error = serde_json::from_str::<LabelSelector>(text).unwrap_err().to_string();
        assert!(error.contains(named), "{text}: {error}");
    }
}

#[test]
fn a_pod_is_selected_by_any_pair_of_selectors() {
    let text = r#"[{"podSelector":{"matchLabels":{"a":"1"}}},
                   {"namespaceSelector":{"matchLabels":{"team":"x"}}}]"#;
    let rules = Rules { selectors: serde_json::from_str(text).unwrap(), ..Rules::default() };
    let decide = |pod: &[(&str, &str)], namespace: &[(&str, &str)]| {
        let (pod, none) = (labels(pod), Labels::new());
        let facts = PodFacts { namespace: "n", labels: &pod, annotations: &none, host_network: false };
        rules.decide(facts, &labels(namespace))
    };
    assert_eq!(decide(&[("a", "1")], &[]), Decision::Enrol);
    assert_eq!(decide(&[], &[("team", "x")]), Decision::Enrol);
    assert_eq!(decide(&[("a", "2")], &[("team", "y")]), Decision::Skip(Reason::NotSelected));
}

#[test]
fn the_node_roles_pods_are_recognized_by_namespace_and_name() {
    assert!(is_node_pod("istio-system", "istio-cni-node-x7k2p", "istio-system"));
    assert!(is_node_pod("istio-system", "isthmus-node-x7k2p", "istio-system"));
    assert!(!is_node_pod("sample", "isthmus-node-x7k2p", "istio-system"));
    assert!(!is_node_pod("istio-system", "isthmus-nodes", "istio-system"));
}
