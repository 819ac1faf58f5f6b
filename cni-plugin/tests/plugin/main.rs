//! The built plugin, run as a container runtime runs it, against a scripted API server and a scripted node role.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail as a test does")]

mod runtime;
mod tls;

use runtime::{TestRuntime, previous};
use serde_json::{Value, json};

const MODE: &str = "istio.io/dataplane-mode";

fn ambient() -> Value {
    json!({"metadata": {"name": "x", "labels": {MODE: "ambient"}}})
}

fn plain() -> Value {
    json!({"metadata": {"name": "x", "labels": null, "annotations": null}, "spec": {"hostNetwork": false}})
}

#[test]
fn a_pod_of_the_mesh_is_enrolled_and_prev_result_is_returned() {
    for (pod, namespace) in [(ambient(), plain()), (plain(), ambient())] {
        let runtime = TestRuntime::with(pod, namespace);
        let ran = runtime.add("sample", "sleep");
        assert!(ran.ok, "{}", ran.stdout);
        assert_eq!(ran.json(), previous());

        let api = runtime.api.lock().unwrap().clone();
        assert_eq!(api.len(), 2);
        assert!(api.iter().all(|seen| seen.headers["authorization"] == "Bearer sesame"), "{api:?}");
        let node = runtime.node.lock().unwrap().clone();
        assert_eq!(node.len(), 1);
        assert_eq!(node[0].line, "POST /cmdadd HTTP/1.1");
        let event: Value = serde_json::from_str(&node[0].body).unwrap();
        let netns = runtime.dir.path().join("netns").display().to_string();
        let want = json!({
            "Netns": netns, "PodName": "sleep", "PodNamespace": "sample",
            "IPs": [{"Interface": 0, "Address": {"IP": "10.11.0.5", "Mask": "////AA=="}, "Gateway": "10.11.0.1"}],
        });
        assert_eq!(event, want);
    }
}

#[test]
fn the_result_has_the_layout_of_the_configured_cni_version() {
    let runtime = TestRuntime::with(ambient(), plain());
    let mut stdin = runtime.stdin();
    stdin["cniVersion"] = json!("0.4.0");
    stdin["prevResult"]["ips"][0]["version"] = json!("4");
    let args = "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep";
    let ran = runtime.run("ADD", &stdin.to_string(), &[("CNI_ARGS", args)]);
    assert!(ran.ok, "{}", ran.stdout);
    assert_eq!(ran.json()["cniVersion"], "0.4.0");
    assert_eq!(ran.json()["ips"][0]["version"], "4");
}

#[test]
fn excluded_pods_start_without_the_api_server_or_the_node_role() {
    // Nothing listens anywhere and there is no kubeconfig: any call would fail the command.
    let runtime = TestRuntime::empty();
    let cases = [
        ("kube-system", "coredns-1"),
        ("istio-system", "istio-cni-node-abcde"),
        ("istio-system", "isthmus-node-abcde"),
        ("", ""),
    ];
    for (namespace, name) in cases {
        let ran = runtime.add(namespace, name);
        assert!(ran.ok, "{namespace}/{name}: {}", ran.stdout);
        assert_eq!(ran.json(), previous());
    }
    let mut off = runtime.stdin();
    off["ambient_enabled"] = json!(false);
    let args = "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep";
    assert!(runtime.run("ADD", &off.to_string(), &[("CNI_ARGS", args)]).ok);
    // Control: in the same setup, ADD of a pod that might belong to the mesh fails.
    assert!(!runtime.add("sample", "sleep").ok);
}

#[test]
fn an_unselected_pod_starts_without_the_node_role() {
    let none = json!({"metadata": {"labels": {MODE: "none"}}});
    let sidecar =
        json!({"metadata": {"labels": {MODE: "ambient"}, "annotations": {"sidecar.istio.io/status": "{}"}}});
    let host = json!({"metadata": {"labels": {MODE: "ambient"}}, "spec": {"hostNetwork": true}});
    for pod in [plain(), none, sidecar, host] {
        let namespace = if pod == plain() { plain() } else { ambient() };
        let runtime = TestRuntime::with(pod.clone(), namespace);
        let ran = runtime.add("sample", "sleep");
        assert!(ran.ok, "{pod}: {}", ran.stdout);
        assert_eq!(ran.json(), previous());
        assert_eq!(runtime.api.lock().unwrap().len(), 2, "{pod}");
        assert!(runtime.node.lock().unwrap().is_empty(), "{pod}");
    }
}

#[test]
fn configured_selectors_replace_the_defaults() {
    let runtime = TestRuntime::with(json!({"metadata": {"labels": {"team": "a"}}}), plain());
    let mut stdin = runtime.stdin();
    let selector = json!({"key": "team", "operator": "In", "values": ["a"]});
    stdin["enablement_selectors"] = json!([{"podSelector": {"matchExpressions": [selector]}}]);
    let args = "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep";
    assert!(runtime.run("ADD", &stdin.to_string(), &[("CNI_ARGS", args)]).ok);
    assert_eq!(runtime.node.lock().unwrap().len(), 1);
}

#[test]
fn every_failure_fails_add_and_names_its_cause() {
    let missing = TestRuntime::empty();
    let (code, details) = missing.add("sample", "sleep").error();
    assert_eq!(code, 11);
    assert!(details.contains("istio-cni-kubeconfig"), "{details}");
    assert!(details.contains("not known whether it belongs to the mesh"), "{details}");

    let expired = TestRuntime::empty();
    expired.serve_api_answering(|_| {
        ("401 Unauthorized".to_owned(), json!({"message": "Unauthorized"}).to_string())
    });
    let (_, details) = expired.add("sample", "sleep").error();
    assert!(
        details.contains("not known whether it belongs to the mesh") && details.contains("the token of"),
        "{details}"
    );
    assert!(details.contains("istio-cni-kubeconfig") && details.contains("node pod"), "{details}");

    let api_down = TestRuntime::empty();
    api_down.kubeconfig("    server: http://127.0.0.1:1");
    let (_, details) = api_down.add("sample", "sleep").error();
    assert!(details.contains("http") || details.contains("127.0.0.1:1"), "{details}");

    let unknown = TestRuntime::with(ambient(), plain());
    let (_, details) = unknown.add("sample", "other").error();
    assert!(details.contains("404") && details.contains("not found"), "{details}");
    assert!(unknown.node.lock().unwrap().is_empty());

    let node_down = TestRuntime::empty();
    node_down.serve_api(ambient(), plain());
    let ran = node_down.add("sample", "sleep");
    let (_, details) = ran.error();
    assert!(details.contains("pod sample/sleep") && details.contains("pluginevent.sock"), "{details}");
    let line: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((line["level"].as_str(), line["pod"].as_str()), (Some("error"), Some("sample/sleep")));
    let file = std::fs::read_to_string(node_down.dir.path().join("istio-cni.log")).unwrap();
    assert!(file.contains("pluginevent.sock"), "{file}");
    // And the retry, when the node role is back.
    node_down.serve_node("200 OK", "");
    assert!(node_down.add("sample", "sleep").ok);

    let refused = TestRuntime::empty();
    refused.serve_api(ambient(), plain());
    refused.serve_node("500 Internal Server Error", "no agent is connected\n");
    let (_, details) = refused.add("sample", "sleep").error();
    assert!(
        details.contains("status 500: no agent is connected") && details.contains("sample/sleep"),
        "{details}"
    );
}

#[test]
fn bad_stdin_is_one_error_that_names_the_field() {
    let runtime = TestRuntime::empty();
    let cases = [
        ("{", 6, "not a JSON object"),
        (r#"{"cniVersion":"1.1.0","name":"n","type":"t","exclude_namespaces":"x"}"#, 7, "exclude_namespaces"),
        (
            r#"{"cniVersion":"1.1.0","name":"n","type":"t","prevResult":{"ips":[{"address":1}]}}"#,
            7,
            "prevResult.ips[0]",
        ),
        (r#"{"cniVersion":"1.1.0","type":"t"}"#, 7, "name"),
        (r#"{"cniVersion":"9.0.0","name":"n","type":"t"}"#, 1, "9.0.0"),
    ];
    for (stdin, code, named) in cases {
        let (got, details) = runtime.run("ADD", stdin, &[]).error();
        assert_eq!(got, code, "{stdin}: {details}");
        assert!(details.contains(named), "{stdin}: {details}");
    }
    let args = "K8S_POD_NAMESPACE=../x;K8S_POD_NAME=y";
    let (code, details) = runtime.run("ADD", &runtime.stdin().to_string(), &[("CNI_ARGS", args)]).error();
    assert_eq!(code, 4);
    assert!(details.contains("K8S_POD_NAMESPACE"), "{details}");
}

#[test]
fn every_command_but_add_succeeds_without_the_node_role() {
    let runtime = TestRuntime::empty();
    let stdin = runtime.stdin().to_string();
    // With STATUS failing, a node would become not ready whenever the node role restarts, and its pod could not start.
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let ran = runtime.run(command, &stdin, &[]);
        assert!(ran.ok && ran.stdout.is_empty(), "{command}: {}", ran.stdout);
    }
    // A pod can still be deleted under a configuration that ADD would refuse.
    let mut broken = runtime.stdin();
    broken["enablement_selectors"] = json!(5);
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        assert!(runtime.run(command, &broken.to_string(), &[]).ok, "{command}");
    }
    // STATUS and GC are of the specification's last version.
    let mut old = runtime.stdin();
    old["cniVersion"] = json!("1.0.0");
    assert_eq!(runtime.run("STATUS", &old.to_string(), &[]).error().0, 1);

    let version = runtime.run("VERSION", "{}", &[]);
    assert!(version.ok);
    assert_eq!(version.json()["cniVersion"], "1.1.0");
    let want = json!(["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    assert_eq!(version.json()["supportedVersions"], want);

    let (code, _) = runtime.run("DANCE", &stdin, &[]).error();
    assert_eq!(code, 4);
}

#[test]
fn the_first_versions_results_are_passed_on_as_they_came() {
    let runtime = TestRuntime::with(ambient(), plain());
    let args = "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep";
    let previous = json!({"ip4": {"ip": "10.11.0.5/24", "gateway": "10.11.0.1"}, "ip6": {"ip": "fd00::5/64"}, "dns": {}});
    for version in [json!("0.1.0"), json!("0.2.0"), Value::Null] {
        let mut stdin = runtime.stdin();
        stdin["cniVersion"] = version.clone();
        stdin["prevResult"] = previous.clone();
        let ran = runtime.run("ADD", &stdin.to_string(), &[("CNI_ARGS", args)]);
        assert!(ran.ok, "{}", ran.stdout);
        let mut want = previous.clone();
        want["cniVersion"] = if version.is_null() { json!("0.1.0") } else { version };
        assert_eq!(ran.json(), want);
        let node = runtime.node.lock().unwrap().clone();
        let event: Value = serde_json::from_str(&node.last().unwrap().body).unwrap();
        let ips = event["IPs"].as_array().unwrap();
        assert_eq!(
            (&ips[0]["Address"]["IP"], &ips[1]["Address"]["IP"]),
            (&json!("10.11.0.5"), &json!("fd00::5"))
        );
        assert!(runtime.run("DEL", &stdin.to_string(), &[("CNI_ARGS", args)]).ok);
    }
}

#[test]
fn an_empty_list_of_selectors_means_no_pod() {
    let runtime = TestRuntime::with(ambient(), ambient());
    let mut stdin = runtime.stdin();
    stdin["enablement_selectors"] = json!([]);
    let args = "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep";
    assert!(runtime.run("ADD", &stdin.to_string(), &[("CNI_ARGS", args)]).ok);
    assert!(runtime.node.lock().unwrap().is_empty());
}

#[test]
fn lines_go_to_the_node_role_too() {
    let runtime = TestRuntime::with(ambient(), plain());
    let lines = runtime.serve_log();
    assert!(runtime.add("sample", "sleep").ok);
    let seen = lines.lock().unwrap().clone();
    assert_eq!(seen[0].line, "POST /log HTTP/1.1");
    let texts: Vec<String> = serde_json::from_str(&seen[0].body).unwrap();
    let line: Value = serde_json::from_str(&texts[0]).unwrap();
    assert_eq!((line["level"].as_str(), line["pod"].as_str()), (Some("info"), Some("sample/sleep")));
    assert!(line["time"].is_string() && line["msg"].is_string(), "{line}");
    let file = std::fs::read_to_string(runtime.dir.path().join("istio-cni.log")).unwrap();
    assert_eq!(file.trim_end(), texts[0]);
}

#[test]
fn add_on_the_hosts_own_namespace_is_refused() {
    let runtime = TestRuntime::with(ambient(), plain());
    let env =
        [("CNI_NETNS", "/proc/self/ns/net"), ("CNI_ARGS", "K8S_POD_NAMESPACE=sample;K8S_POD_NAME=sleep")];
    let (code, details) = runtime.run("ADD", &runtime.stdin().to_string(), &env).error();
    assert_eq!(code, 8);
    assert!(details.contains("/proc/self/ns/net"), "{details}");
    assert!(runtime.node.lock().unwrap().is_empty());
}
