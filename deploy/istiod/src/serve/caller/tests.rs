//! Which callers may have which certificates.

use serde_json::json;

use super::*;
use playground_k8s::client::Event;

fn account(text: &str) -> Account {
    Account::parse(text).unwrap()
}

fn clusters() -> Clusters {
    let mut clusters = Clusters::default();
    for (namespace, name, account, node, phase) in [
        ("istio-system", "ztunnel-1", "ztunnel", "n1", "Running"),
        ("sample", "here", "hello", "n1", "Pending"),
        ("sample", "there", "far", "n2", "Running"),
        ("sample", "ended", "old", "n1", "Failed"),
    ] {
        let pod = json!({
            "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}")},
            "spec": {"serviceAccountName": account, "nodeName": node}, "status": {"phase": phase},
        });
        clusters.apply(&ClusterId("east".to_owned()), "Pod", Event::Applied(pod));
    }
    clusters
}

fn caller(account_name: &str, pod: Option<(&str, &str)>) -> Caller {
    Caller {
        cluster: ClusterId("east".to_owned()),
        account: account(account_name),
        pod: pod.map(|(name, uid)| (name.to_owned(), uid.to_owned())),
    }
}

#[test]
fn the_node_agent_speaks_for_the_pods_of_its_node_only() {
    let agent = caller("istio-system/ztunnel", Some(("ztunnel-1", "uid-ztunnel-1")));
    let asks = |caller: &Caller, wanted: &str| {
        let trusted = account("istio-system/ztunnel");
        caller.may_be(&account(wanted), &trusted, &clusters()).map_err(|denied| denied.to_string())
    };
    assert_eq!(asks(&agent, "sample/hello"), Ok(()));
    assert_eq!(asks(&agent, "istio-system/ztunnel"), Ok(()));
    for (caller, wanted, says) in [
        (
            agent.clone(),
            "sample/far",
            "no pod of service account sample/far runs on node \"n1\" of cluster east",
        ),
        (
            agent.clone(),
            "sample/old",
            "no pod of service account sample/old runs on node \"n1\" of cluster east",
        ),
        (
            caller("istio-system/ztunnel", None),
            "sample/hello",
            "the token of service account istio-system/ztunnel is not bound to a pod",
        ),
        (
            caller("istio-system/ztunnel", Some(("ztunnel-1", "old"))),
            "sample/hello",
            "pod istio-system/ztunnel-1 with uid old of the token is not known in cluster east",
        ),
        (
            caller("sample/hello", Some(("here", "uid-here"))),
            "sample/far",
            "service account sample/hello may ask only for its own identity, not for that of service account sample/far",
        ),
    ] {
        assert_eq!(asks(&caller, wanted), Err(says.to_owned()));
    }
    let elsewhere = Caller { cluster: ClusterId("west".to_owned()), ..agent };
    assert!(asks(&elsewhere, "sample/hello").unwrap_err().contains("in cluster west"));
}

#[test]
fn identities_are_of_one_form() {
    let read = |identity: &str| Account::from_identity(identity, "cluster.local");
    assert_eq!(read("spiffe://cluster.local/ns/a/sa/b"), Some(account("a/b")));
    for bad in [
        "spiffe://other/ns/a/sa/b",
        "spiffe://cluster.local.evil/ns/a/sa/b",
        "spiffe://cluster.local/ns/a/sa/",
        "spiffe://cluster.local/ns/a/b/sa/c",
        "spiffe://cluster.local/ns/a/sa/b/c",
        "cluster.local/ns/a/sa/b",
    ] {
        assert_eq!(read(bad), None, "{bad}");
    }
}

#[test]
fn a_review_is_read_with_its_pod() {
    let review = json!({"status": {"authenticated": true, "user": {
        "username": "system:serviceaccount:istio-system:ztunnel",
        "extra": {"authentication.kubernetes.io/pod-name": ["z"], "authentication.kubernetes.io/pod-uid": ["u"]},
    }}});
    let read = |review: Value| read(&serde_json::from_value(review).unwrap(), ClusterId("east".to_owned()));
    assert_eq!(read(review).unwrap(), caller("istio-system/ztunnel", Some(("z", "u"))));
    let refused = json!({"status": {"authenticated": false, "error": "the token has expired"}});
    let status = read(refused).unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert!(status.message().contains("the token has expired"));
    let user = json!({"status": {"authenticated": true, "user": {"username": "admin"}}});
    assert!(read(user).unwrap_err().message().contains("\"admin\" is no service account"));
}
