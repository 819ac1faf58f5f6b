use std::net::IpAddr;

use isthmus_kit::istiod::{raw_resource, resource, response};
use isthmus_model::{Action, Health, Outline, Scope};
use isthmus_proto::{security, workload};
use prost::Message as _;

use super::*;

const ADDRESS: &str = type_url::ADDRESS;
const AUTHORIZATION: &str = type_url::AUTHORIZATION;

fn session() -> Session {
    Session::new(discovery::Node { id: "node".to_owned(), ..discovery::Node::default() }, Limits::default())
}

fn workload(uid: &str, address: &[u8]) -> workload::Address {
    let workload = workload::Workload {
        uid: uid.to_owned(),
        name: uid.to_owned(),
        addresses: vec![address.to_vec()],
        ..workload::Workload::default()
    };
    workload::Address { r#type: Some(workload::address::Type::Workload(workload)) }
}

fn service(hostname: &str) -> workload::Address {
    let service = workload::Service {
        namespace: "ns".to_owned(),
        hostname: hostname.to_owned(),
        ..workload::Service::default()
    };
    workload::Address { r#type: Some(workload::address::Type::Service(service)) }
}

fn policy(name: &str, action: i32) -> security::Authorization {
    security::Authorization {
        name: name.to_owned(),
        namespace: "ns".to_owned(),
        action,
        ..security::Authorization::default()
    }
}

fn good(uid: &str, version: &str) -> discovery::Resource {
    resource(ADDRESS, uid, version, &workload(uid, &[10, 0, 0, 1]))
}

/// An address of three bytes.
fn bad(uid: &str, version: &str) -> discovery::Resource {
    resource(ADDRESS, uid, version, &workload(uid, &[10, 0, 0]))
}

fn versions(session: &Session, kind: Kind) -> Vec<(String, String)> {
    let requests = session.initial_requests();
    let request = requests.iter().find(|request| request.type_url == kind.type_url()).unwrap();
    let mut versions: Vec<_> = request.initial_resource_versions.clone().into_iter().collect();
    versions.sort();
    versions
}

fn uids(push: Option<Push>) -> Vec<String> {
    match push {
        Some(Push::Addresses { upserts, .. }) => upserts
            .iter()
            .map(|resource| match resource {
                Resource::Workload(workload) => workload.uid.to_string(),
                Resource::Service(service) => service.key().to_string(),
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_opens_with_the_node_and_a_wildcard_per_type() {
    let requests = session().initial_requests();
    let urls: Vec<&str> = requests.iter().map(|request| request.type_url.as_str()).collect();
    assert_eq!(urls, [ADDRESS, AUTHORIZATION]);
    for request in requests {
        assert_eq!(request.node.unwrap().id, "node");
        assert!(request.resource_names_subscribe.is_empty());
        assert!(request.resource_names_unsubscribe.is_empty());
        assert!(request.initial_resource_versions.is_empty());
        assert!(request.response_nonce.is_empty());
    }
}

#[test]
fn a_valid_push_is_acked_with_its_nonce_only() {
    let mut session = session();
    let resources = vec![good("w1", "7"), resource(ADDRESS, "ns/host", "8", &service("host"))];
    let HandledResponse { push, reply, rejected } =
        session.handle_response(response(ADDRESS, "n1", resources, &[])).unwrap();
    assert!(rejected.is_empty());
    let ack = DeltaDiscoveryRequest {
        type_url: ADDRESS.to_owned(),
        response_nonce: "n1".to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    assert_eq!(reply, ack);
    let Some(Push::Addresses { upserts, removed }) = push else { panic!("addresses") };
    assert!(removed.is_empty());
    let Resource::Workload(workload) = &upserts[0] else { panic!("a workload") };
    assert_eq!((workload.uid.as_str(), workload.status), ("w1", Health::Healthy));
    assert_eq!(workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert!(matches!(&upserts[1], Resource::Service(service) if service.key().to_string() == "ns/host"));
}

#[test]
fn a_bad_resource_is_nacked_alone_and_by_name() {
    let mut session = session();
    let resources = vec![
        good("w1", "1"),
        bad("w2", "1"),
        raw_resource(ADDRESS, "w3", "1", vec![0xff, 0xff, 0xff]),
        resource(ADDRESS, "w4", "1", &workload::Address { r#type: None }),
        discovery::Resource { name: "w5".to_owned(), ..discovery::Resource::default() },
        raw_resource(AUTHORIZATION, "w6", "1", Vec::new()),
        resource(ADDRESS, "", "1", &workload("w7", &[10, 0, 0, 7])),
        good("w8", "1"),
    ];
    let HandledResponse { push, reply, rejected } =
        session.handle_response(response(ADDRESS, "n1", resources, &[])).unwrap();
    assert_eq!(uids(push), ["w1", "w8"]);
    let names: Vec<&str> = rejected.iter().map(|rejection| rejection.name.as_str()).collect();
    assert_eq!(names, ["w2", "w3", "w4", "w5", "w6", ""]);
    assert_eq!(reply.response_nonce, "n1");
    assert!(reply.node.is_none());
    let detail = reply.error_detail.unwrap().message;
    let parts: Vec<&str> = detail.split("; ").collect();
    assert_eq!(parts.len(), 6, "{detail}");
    for (part, (name, reason)) in parts.iter().zip([
        ("w2", "3 bytes"),
        ("w3", "decode"),
        ("w4", "missing"),
        ("w5", "empty"),
        ("w6", AUTHORIZATION),
        ("", "no name"),
    ]) {
        assert!(part.starts_with(&format!("{name}: ")) && part.contains(reason), "{part}");
    }
    let told = [("w1", "1"), ("w2", ""), ("w3", ""), ("w4", ""), ("w5", ""), ("w6", ""), ("w8", "1")];
    assert_eq!(versions(&session, Kind::Address), told.map(|(name, version)| (name.into(), version.into())));
}

#[test]
fn a_rejected_resource_is_listed_until_it_is_valid_or_removed() {
    let mut session = session();
    session.handle_response(response(ADDRESS, "1", vec![bad("a", "1"), bad("b", "1")], &[])).unwrap();
    assert_eq!(session.rejections().len(), 2);
    session.handle_response(response(ADDRESS, "2", vec![good("a", "2")], &[])).unwrap();
    let left = session.rejections();
    assert_eq!((left.len(), left[0].name.as_str(), left[0].kind), (1, "b", Kind::Address));
    session.handle_response(response(ADDRESS, "3", vec![], &["b"])).unwrap();
    assert!(session.rejections().is_empty());
}

#[test]
fn a_rejected_new_version_keeps_the_held_one() {
    let mut session = session();
    session.handle_response(response(ADDRESS, "1", vec![good("a", "1")], &[])).unwrap();
    session.handle_response(response(ADDRESS, "2", vec![bad("a", "2")], &[])).unwrap();
    assert_eq!(versions(&session, Kind::Address), [("a".into(), "1".into())]);
    session.handle_response(response(ADDRESS, "3", vec![good("a", "3")], &[])).unwrap();
    assert_eq!(versions(&session, Kind::Address), [("a".into(), "3".into())]);
}

#[test]
fn removals_apply_after_the_resources_of_the_same_push() {
    let mut session = session();
    session.handle_response(response(ADDRESS, "1", vec![good("a", "1"), good("b", "1")], &[])).unwrap();
    let handled = session.handle_response(response(ADDRESS, "2", vec![good("c", "1")], &["a", "c"])).unwrap();
    let Some(Push::Addresses { upserts, removed }) = handled.push else { panic!("addresses") };
    assert_eq!((upserts.len(), removed), (1, vec!["a".to_owned(), "c".to_owned()]));
    assert_eq!(versions(&session, Kind::Address), [("b".into(), "1".into())]);
}

#[test]
fn a_reconnect_sends_the_held_versions_of_each_type() {
    let mut session = session();
    session.handle_response(response(ADDRESS, "1", vec![good("a", "5"), good("b", "6")], &[])).unwrap();
    // Control planes may leave the versions of policies empty; their names still count.
    let allow = resource(AUTHORIZATION, "ns/p", "", &policy("p", 0));
    session.handle_response(response(AUTHORIZATION, "2", vec![allow], &[])).unwrap();
    assert_eq!(versions(&session, Kind::Address), [("a".into(), "5".into()), ("b".into(), "6".into())]);
    assert_eq!(versions(&session, Kind::Authorization), [("ns/p".into(), String::new())]);
    assert!(session.initial_requests().iter().all(|request| request.node.is_some()));
}

#[test]
fn policies_are_keyed_by_their_xds_name_and_unknown_ones_are_named() {
    let mut session = session();
    let resources = vec![
        resource(AUTHORIZATION, "ns/converted-name", "1", &policy("p", 1)),
        resource(AUTHORIZATION, "ns/new-action", "1", &policy("q", 9)),
    ];
    let handled = session.handle_response(response(AUTHORIZATION, "1", resources, &["ns/old"])).unwrap();
    let Some(Push::Policies { upserts, removed, refused }) = handled.push else { panic!("policies") };
    assert_eq!(upserts.len(), 1);
    assert_eq!(upserts[0].0, PolicyKey::from("ns/converted-name"));
    assert_eq!(removed, [PolicyKey::from("ns/old")]);
    let outline =
        Outline { namespace: "ns".into(), scope: Scope::Global, action: Action::Deny, dry_run: false };
    assert_eq!(refused, [RefusedPolicy { key: "ns/new-action".into(), outline: Some(outline) }]);
    assert!(handled.reply.error_detail.unwrap().message.starts_with("ns/new-action: "));
}

#[test]
fn the_scope_of_a_rejected_policy_is_passed_on() {
    let far = |wire: &mut security::Authorization| {
        let matches = vec![security::Match { destination_ports: vec![70_000], ..Default::default() }];
        wire.rules = vec![security::Rule { clauses: vec![security::Clause { matches }] }];
    };
    let mut deny = policy("deny", 1);
    deny.scope = 1;
    far(&mut deny);
    let mut nowhere = policy("nowhere", 0);
    nowhere.scope = 9;
    let resources = vec![
        resource(AUTHORIZATION, "ns/deny", "1", &deny),
        resource(AUTHORIZATION, "ns/nowhere", "1", &nowhere),
        raw_resource(AUTHORIZATION, "ns/noise", "1", vec![0xff]),
        raw_resource(AUTHORIZATION, "", "1", vec![0xff]),
    ];
    let handled = session().handle_response(response(AUTHORIZATION, "1", resources, &[])).unwrap();
    let Some(Push::Policies { refused, .. }) = handled.push else { panic!("policies") };
    let known =
        Outline { namespace: "ns".into(), scope: Scope::Namespace, action: Action::Deny, dry_run: false };
    let of = |key: &str, outline| RefusedPolicy { key: key.into(), outline };
    assert_eq!(refused, [of("ns/deny", Some(known)), of("ns/nowhere", None), of("ns/noise", None)]);
    assert_eq!(handled.rejected.len(), 4, "one without a name is refused too");
}

#[test]
fn aliases_do_not_change_the_name_of_a_resource() {
    let mut session = session();
    let aliased = discovery::Resource {
        aliases: vec!["net1/10.0.0.1".to_owned()],
        ..resource(ADDRESS, "c//Pod/ns/a", "1", &workload("c//Pod/ns/a", &[10, 0, 0, 1]))
    };
    assert_eq!(
        uids(session.handle_response(response(ADDRESS, "1", vec![aliased], &[])).unwrap().push),
        ["c//Pod/ns/a"]
    );
    assert_eq!(versions(&session, Kind::Address), [("c//Pod/ns/a".into(), "1".into())]);
}

#[test]
fn an_unknown_type_is_acked_and_ignored() {
    let mut session = session();
    let url = "type.googleapis.com/istio.workload.Workload";
    let HandledResponse { push, reply, rejected } = session
        .handle_response(response(url, "n9", vec![raw_resource(url, "x", "1", vec![0xff])], &[]))
        .unwrap();
    assert_eq!((push, rejected.len()), (None, 0));
    assert_eq!((reply.type_url.as_str(), reply.response_nonce.as_str()), (url, "n9"));
    assert!(reply.error_detail.is_none());
    assert!(!session.is_synced());
}

#[test]
fn synced_after_the_first_push_of_each_type_even_with_rejections() {
    let mut session = session();
    session.handle_response(response(ADDRESS, "1", vec![bad("a", "1")], &[])).unwrap();
    assert!(!session.is_synced());
    session.handle_response(response(AUTHORIZATION, "2", vec![], &[])).unwrap();
    assert!(session.is_synced());
}

#[test]
fn resources_over_the_budget_are_rejected_until_others_are_removed() {
    let size = |name: &str| 2 * RESOURCE_COST + u64::try_from(good(name, "1").encoded_len()).unwrap();
    let limits = Limits { budget: size("a") + RESOURCE_COST, ..Limits::default() };
    let mut session = Session::new(discovery::Node::default(), limits);
    let names = |handled: HandledResponse| -> Vec<String> {
        handled.rejected.into_iter().map(|rejection| rejection.name).collect()
    };
    let two = vec![good("a", "1"), good("b", "1"), good("c", "1"), good("d", "1")];
    let rejected = names(session.handle_response(response(ADDRESS, "1", two, &[])).unwrap());
    assert!(!rejected.is_empty() && rejected.len() < 4, "{rejected:?}");
    // What does not grow is admitted, whatever is held.
    assert!(
        names(session.handle_response(response(ADDRESS, "2", vec![good("a", "2")], &[])).unwrap()).is_empty()
    );
    assert_eq!(
        names(session.handle_response(response(ADDRESS, "3", vec![good("d", "1")], &["a"])).unwrap()),
        ["d"]
    );
    assert!(
        names(session.handle_response(response(ADDRESS, "4", vec![good("d", "1")], &[])).unwrap()).is_empty()
    );
    for name in ["a", "b", "c", "d"] {
        session.handle_response(response(ADDRESS, "5", Vec::new(), &[name])).unwrap();
    }
    assert_eq!(session.held, 0);
}

#[test]
fn what_a_control_plane_sends_is_shortened_where_it_is_kept_or_sent_back() {
    let mut session = session();
    let many = (0..1_000).map(|at| bad(&format!("bad-{at}"), "1")).collect();
    let detail =
        session.handle_response(response(ADDRESS, "1", many, &[])).unwrap().reply.error_detail.unwrap();
    assert!(
        detail.message.contains("bad-0: ") && detail.message.ends_with("and 980 more"),
        "{}",
        detail.message
    );
    let long = "ü".repeat(1 << 20);
    let handled = session.handle_response(response(ADDRESS, "2", vec![good(&long, "1")], &[])).unwrap();
    assert!(handled.reply.error_detail.unwrap().message.len() < 2_000);
    assert!(session.rejections().iter().all(|rejection| rejection.name.len() <= LONGEST_NAME));
    // Its removal is one of the shortened name.
    session.handle_response(response(ADDRESS, "3", Vec::new(), &[&long])).unwrap();
    assert!(session.rejections().iter().all(|rejection| rejection.name.len() < 100));
    let large = raw_resource(ADDRESS, "large", "1", vec![0; 5 << 20]);
    let handled = session.handle_response(response(ADDRESS, "4", vec![large], &[])).unwrap();
    assert!(handled.rejected[0].reason.contains("larger than 4194304 bytes"), "{:?}", handled.rejected);
}

#[test]
fn rejected_addresses_are_kept_up_to_a_limit_and_policies_beyond_it_end_the_stream() {
    let limits = Limits { rejected: 10, ..Limits::default() };
    let mut session = Session::new(discovery::Node::default(), limits);
    let many = (0..100).map(|at| bad(&format!("bad-{at}"), "1")).collect();
    assert_eq!(session.handle_response(response(ADDRESS, "1", many, &[])).unwrap().rejected.len(), 100);
    assert_eq!(session.rejections().len(), 10);
    let policies = |count: usize| -> Vec<discovery::Resource> {
        let bad = |at: usize| raw_resource(AUTHORIZATION, &format!("ns/bad-{at}"), "1", vec![0xff]);
        (0..count).map(bad).chain([resource(AUTHORIZATION, "ns/good", "1", &policy("good", 0))]).collect()
    };
    let refused = session.handle_response(response(AUTHORIZATION, "2", policies(11), &[])).unwrap_err();
    assert!(refused.to_string().contains("ns/bad-0"), "{refused}");
    assert!(versions(&session, Kind::Authorization).is_empty(), "nothing of the response is recorded");
    session.handle_response(response(AUTHORIZATION, "3", policies(10), &[])).unwrap();
}
