//! The server and the client against each other, over TLS on loopback.

use k8s_openapi::api::authentication::v1::TokenRequestSpec;
use tokio::sync::mpsc;

use super::*;
use crate::api::fixture::{NO_WEBHOOK, running};
use crate::client::{Collection, Event};
use crate::manifest::object;

fn pod(name: &str, app: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": {"containers": [{"name": "c"}]}})
}

const PODS: &str = "/api/v1/namespaces/sample/pods";

#[tokio::test]
async fn objects_go_around() {
    let running = running(NO_WEBHOOK).await;
    let client = running.client();
    assert_eq!(client.get(&format!("{PODS}/p")).await.unwrap(), None);
    let made = client.create(PODS, &pod("p", "a")).await.unwrap();
    assert_eq!(object::text(&made, "/spec/nodeName"), "", "what is given back is what was written");
    let stored = client.get(&format!("{PODS}/p")).await.unwrap().unwrap();
    assert_eq!(object::text(&stored, "/spec/nodeName"), "n1");
    let listed =
        client.list("/api/v1/pods?labelSelector=app%3Da&fieldSelector=spec.nodeName%3Dn1").await.unwrap();
    assert_eq!(listed, [stored]);
    assert!(client.list("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2").await.unwrap().is_empty());
    let patch = json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}});
    let patched = client.merge_patch(&format!("{PODS}/p/status"), &patch).await.unwrap();
    assert_eq!(object::annotation(&patched, "ambient.istio.io/redirection"), Some("enabled"));
    client.delete_now(&format!("{PODS}/p")).await.unwrap();
    client.delete_now(&format!("{PODS}/p")).await.unwrap();
    let service = client.get("/api/v1/namespaces/default/services/kubernetes").await.unwrap().unwrap();
    assert_eq!(object::text(&service, "/spec/clusterIP"), "172.21.0.1");
}

#[tokio::test]
async fn errors_are_statuses() {
    let running = running(NO_WEBHOOK).await;
    let client = running.client();
    client.create(PODS, &pod("p", "a")).await.unwrap();
    let error = client.create(PODS, &pod("p", "a")).await.unwrap_err();
    assert!(error.is_conflict());
    assert_eq!(error.to_string(), format!("POST {PODS}: 409 AlreadyExists: pods \"p\" already exists"));
    let error = client.list("/apis/batch/v1/jobs").await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let error = running.client_with("wrong").list("/api/v1/pods").await.unwrap_err();
    assert_eq!(error.status(), Some(401));
    let applied =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"a": "b"}}});
    assert_eq!(object::label(&client.apply(&applied).await.unwrap(), "a"), Some("b"));
}

#[tokio::test]
async fn a_service_account_is_let_in_and_reviewed() {
    let running = running(NO_WEBHOOK).await;
    let client = running.client();
    let token = client.token("sample", "default", TokenRequestSpec::default()).await.unwrap();
    assert_eq!(running.client_with(&token).list("/api/v1/nodes").await.unwrap().len(), 2);
    let spec = TokenRequestSpec { audiences: vec!["istio-ca".to_owned()], ..TokenRequestSpec::default() };
    let for_the_ca = client.token("sample", "default", spec).await.unwrap();
    assert!(running.client_with(&for_the_ca).list("/api/v1/nodes").await.is_err());
    let review = |audience: &str| json!({"spec": {"token": for_the_ca, "audiences": [audience]}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let good = client.create(path, &review("istio-ca")).await.unwrap();
    assert_eq!(good["status"]["user"]["username"], "system:serviceaccount:sample:default");
    let bad = client.create(path, &review("vault")).await.unwrap();
    assert_eq!(bad["status"]["authenticated"], false);
    assert!(object::text(&bad, "/status/error").contains("istio-ca"));
}

async fn next(events: &mut mpsc::Receiver<Event>) -> Event {
    tokio::time::timeout(std::time::Duration::from_secs(20), events.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_watch_tells_what_is_and_what_changes() {
    let running = running(NO_WEBHOOK).await;
    let client = running.client();
    client.create(PODS, &pod("p", "a")).await.unwrap();
    let kind = Kind::named("Pod").unwrap();
    let (namespace, labels) = (Some("sample".to_owned()), Some("app=a".to_owned()));
    let mut events = client.watch(Collection { kind, namespace, labels, fields: None }, &running.tasks);
    assert!(matches!(next(&mut events).await, Event::Applied(pod) if object::name(&pod) == "p"));
    assert_eq!(next(&mut events).await, Event::Synced);
    client.create(PODS, &pod("q", "b")).await.unwrap();
    client.merge_patch(&format!("{PODS}/q"), &json!({"metadata": {"labels": {"app": "a"}}})).await.unwrap();
    assert!(matches!(next(&mut events).await, Event::Applied(pod) if object::name(&pod) == "q"));
    client.merge_patch(&format!("{PODS}/p"), &json!({"metadata": {"labels": {"app": "z"}}})).await.unwrap();
    assert!(matches!(next(&mut events).await, Event::Deleted(pod) if object::name(&pod) == "p"));
}

#[test]
fn addresses_are_given_by_name() {
    let good = load_balancer("istio-system/gw=192.168.97.1").unwrap();
    assert_eq!(good, ("istio-system/gw".to_owned(), "192.168.97.1".parse().unwrap()));
    for bad in ["gw=1.2.3.4", "a/b", "a/b=x"] {
        assert!(load_balancer(bad).is_err(), "{bad}");
    }
}
