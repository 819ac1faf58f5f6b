//! Whose token is good, and for how long.

use super::*;
use crate::api::fixture::server;
use crate::api::server::Server;
use crate::api::test_server::key;

fn pod_and_request(server: &Server) -> Value {
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
    let pod = server.create("Pod", Some("sample"), pod).unwrap();
    let bound = json!({"kind": "Pod", "name": "p", "uid": object::uid(&pod)});
    json!({"spec": {"audiences": ["istio-ca"], "expirationSeconds": 600, "boundObjectRef": bound}})
}

fn issue(server: &Server, request: Value) -> Result<Value, Error> {
    let now = SystemTime::now();
    server.store.transaction(|tx| server.issuer.issue(tx, "sample", "default", request, now))
}

fn review(server: &Server, token: &str, audience: &str, later: u64) -> Result<User, String> {
    let now = SystemTime::now() + Duration::from_secs(later);
    server.store.transaction(|tx| server.issuer.review(tx, token, &[audience.to_owned()], now))
}

#[test]
fn a_bound_token_says_which_pod_on_which_node() {
    let server = server();
    let request = pod_and_request(&server);
    let issued = issue(&server, request).unwrap();
    let token = object::text(&issued, "/status/token");
    let user = review(&server, token, "istio-ca", 0).unwrap();
    assert_eq!(user.info["username"], "system:serviceaccount:sample:default");
    assert_eq!(user.info["extra"]["authentication.kubernetes.io/pod-name"][0], "p");
    assert_eq!(user.info["extra"]["authentication.kubernetes.io/node-name"][0], "n1");
    assert_eq!(user.audiences, ["istio-ca"]);
}

#[test]
fn a_token_ends_with_its_time_its_audience_and_its_pod() {
    let server = server();
    let request = pod_and_request(&server);
    let issued = issue(&server, request).unwrap();
    let token = object::text(&issued, "/status/token");
    assert!(review(&server, token, "vault", 0).unwrap_err().contains("istio-ca"));
    assert!(review(&server, token, "istio-ca", 601).unwrap_err().contains("expired"));
    let (message, _) = token.rsplit_once('.').unwrap();
    assert!(review(&server, &format!("{message}.AAAA"), "istio-ca", 0).unwrap_err().contains("signature"));
    assert!(review(&server, "x", "istio-ca", 0).unwrap_err().contains("no JWT"));
    let other = crate::api::fixture::server();
    assert!(review(&other, token, "istio-ca", 0).unwrap_err().contains("signature"));
    server.delete(&key("Pod", "p"), Some(0)).unwrap();
    assert!(review(&server, token, "istio-ca", 0).unwrap_err().contains("does not exist any more"));
}

#[test]
fn a_token_is_bound_only_to_a_pod_of_its_account() {
    let server = server();
    let mut request = pod_and_request(&server);
    request["spec"]["boundObjectRef"]["uid"] = "other".into();
    assert!(issue(&server, request.clone()).unwrap_err().to_string().contains("not \"other\""));
    request["spec"]["boundObjectRef"] = json!({"kind": "Pod", "name": "q"});
    assert!(matches!(issue(&server, request.clone()), Err(Error::NotFound(..))));
    request["spec"]["boundObjectRef"] = json!({"kind": "Secret", "name": "s"});
    assert!(issue(&server, request).unwrap_err().to_string().contains("\"Secret\""));
}
