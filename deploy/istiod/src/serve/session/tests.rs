//! What a client is told, step by step.

use std::collections::HashMap;

use isthmus_proto::discovery::Status;
use isthmus_proto::workload::{PortList, Service, Workload};

use super::*;
use crate::translate::view::Resources;

fn view(workloads: &[(&str, &str)]) -> View {
    let mut addresses = Resources::default();
    for (name, node) in workloads {
        let workload = Workload {
            uid: (*name).to_owned(),
            node: (*node).to_owned(),
            network: "n".to_owned(),
            addresses: vec![vec![10, 0, 0, name.as_bytes()[0]]],
            services: [("a/s".to_owned(), PortList::default())].into(),
            ..Workload::default()
        };
        addresses.add_workload(&workload);
    }
    let service = Service { namespace: "a".to_owned(), hostname: "s".to_owned(), ..Service::default() };
    addresses.add_service(&service);
    View { addresses, policies: Resources::default() }
}

fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: type_url::ADDRESS.to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

#[test]
fn a_wildcard_client_gets_everything_then_what_changes() {
    let mut session = Session::new(None);
    let (outcome, answer) = session.request(request(&[], &[]), &view(&[("p", "1"), ("q", "1")]));
    let answer = answer.unwrap();
    assert_eq!((outcome, names(&answer)), (RequestOutcome::Subscribed, vec!["a/s", "p", "q"]));
    let ack = DeltaDiscoveryRequest { response_nonce: answer.nonce, ..request(&[], &[]) };
    assert_eq!(session.request(ack, &view(&[("p", "1"), ("q", "1")])), (RequestOutcome::Accepted, None));
    assert!(session.changed(&view(&[("p", "1"), ("q", "1")])).is_empty());
    let pushed = session.changed(&view(&[("p", "2")]));
    assert_eq!(
        (names(&pushed[0]), pushed[0].removed_resources.as_slice()),
        (vec!["p"], &["q".to_owned()][..])
    );
}

#[test]
fn a_client_that_returns_is_told_only_the_difference() {
    let known = view(&[("p", "1"), ("q", "1")]);
    let version = known.addresses.get("p").unwrap().version.clone();
    let held = HashMap::from([
        ("p".to_owned(), version),
        ("q".to_owned(), "old".to_owned()),
        ("gone".to_owned(), "x".to_owned()),
    ]);
    let first = DeltaDiscoveryRequest { initial_resource_versions: held, ..request(&[], &[]) };
    let answer = Session::new(None).request(first, &known).1.unwrap();
    assert_eq!(
        (names(&answer), answer.removed_resources.as_slice()),
        (vec!["a/s", "q"], &["gone".to_owned()][..])
    );
}

#[test]
fn a_rejection_is_reported_and_not_repeated() {
    let mut session = Session::new(None);
    let known = view(&[("p", "1")]);
    let answer = session.request(request(&[], &[]), &known).1.unwrap();
    let error = Status { code: 3, message: "p is odd".to_owned() };
    let nack = DeltaDiscoveryRequest {
        response_nonce: answer.nonce,
        error_detail: Some(error),
        ..request(&[], &[])
    };
    let resources = vec!["a/s".to_owned(), "p".to_owned()];
    let rejected = RequestOutcome::Rejected { message: "p is odd".to_owned(), resources };
    assert_eq!(session.request(nack, &known), (rejected, None));
    assert!(session.changed(&known).is_empty());
    assert_eq!(names(&session.changed(&view(&[("p", "2")]))[0]), ["p"]);
}

#[test]
fn names_and_addresses_can_be_asked_for_one_by_one() {
    let mut session = Session::new(Some("mine".to_owned()));
    let known = view(&[("p", "1"), ("q", "mine"), ("r", "1")]);
    let answer = session.request(request(&["*"], &["*"]), &known).1.unwrap();
    assert_eq!(names(&answer), ["q"], "those on its own node come by themselves");
    let answer = session.request(request(&[&format!("n/10.0.0.{}", b'p'), "nobody"], &[]), &known).1.unwrap();
    assert_eq!(
        (names(&answer), answer.removed_resources.as_slice()),
        (vec!["p"], &["nobody".to_owned()][..])
    );
    let answer = session.request(request(&["p"], &[]), &known).1.unwrap();
    assert_eq!(names(&answer), ["p"], "what is asked for again is sent again");
    let answer = session.request(request(&["a/s"], &[]), &known).1.unwrap();
    assert_eq!(names(&answer), ["a/s", "p", "q", "r"], "a service brings its workloads");
    let answer = session.request(request(&[], &["a/s"]), &known).1.unwrap();
    assert_eq!(answer.removed_resources, ["r"], "and takes them away");
}

#[test]
fn other_types_are_not_served() {
    let unknown = DeltaDiscoveryRequest { type_url: "x".to_owned(), ..request(&[], &[]) };
    assert_eq!(Session::new(None).request(unknown, &view(&[])), (RequestOutcome::UnknownType, None));
}

#[test]
fn each_type_has_its_own_subscription() {
    let mut session = Session::new(None);
    let policies =
        DeltaDiscoveryRequest { type_url: type_url::AUTHORIZATION.to_owned(), ..request(&[], &[]) };
    let answer = session.request(policies, &view(&[("p", "1")])).1.unwrap();
    assert!(is_empty(&answer), "the first request is answered even if there is nothing");
    assert!(session.changed(&view(&[])).is_empty());
}

#[test]
fn what_was_not_sent_is_not_waited_for() {
    let mut session = Session::new(None);
    let one = view(&[("p", "1")]);
    let (_, first) = session.request(request(&[], &[]), &one);
    assert_eq!(session.unanswered(), 1);
    let ack = DeltaDiscoveryRequest { response_nonce: first.unwrap().nonce, ..request(&[], &[]) };
    session.request(ack, &one);
    assert!(session.changed(&one).is_empty());
    assert_eq!(session.unanswered(), 0);
    assert_eq!(session.changed(&view(&[("p", "2")])).len(), 1);
    assert_eq!(session.unanswered(), 1);
}
