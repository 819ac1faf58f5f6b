use std::net::IpAddr;

use super::*;
use crate::fixture::{pod, snapshot};
use crate::{Batch, Snapshot};
use isthmus_model::policy::{AccountMatch, Match, StringMatch};
use isthmus_model::{Scope, SpiffeId};

const PEER: &str = "spiffe://td/ns/shop/sa/web";

fn facts(peer: Option<&str>) -> Facts {
    Facts {
        peer: peer.map(|text| text.parse::<SpiffeId>().unwrap()),
        source: IpAddr::from([10, 0, 0, 9]),
        destination: "10.0.0.1:8080".parse().unwrap(),
    }
}

fn rules(one: Match) -> Vec<Vec<Vec<Match>>> {
    vec![vec![vec![one]]]
}

fn policy(name: &str, action: Action, rules: Vec<Vec<Vec<Match>>>) -> Policy {
    let (name, namespace) = (name.into(), "ns".into());
    Policy { name, namespace, scope: Scope::Namespace, action, rules, dry_run: false }
}

fn with(policies: Vec<Policy>) -> Snapshot {
    let mut state = snapshot(&[], &[]);
    let upsert_policies = policies.into_iter().map(|policy| (policy.key(), policy)).collect();
    state.apply(Batch { upsert_policies, ..Batch::default() });
    state
}

fn matches(one: Match, facts: &Facts) -> bool {
    Subject::new(facts).matches(&policy("p", Action::Allow, rules(one)))
}

fn from(principal: &str) -> Match {
    Match { principals: vec![StringMatch::Exact(principal.into())], ..Match::default() }
}

fn anybody() -> Vec<Vec<Vec<Match>>> {
    vec![vec![]]
}

#[test]
fn every_dimension_matches_by_its_values() {
    let text = |kind: fn(isthmus_model::Text) -> StringMatch, text: &str| vec![kind(text.into())];
    let account = |namespace: &str, account: &str| {
        vec![AccountMatch { namespace: namespace.into(), service_account: account.into() }]
    };
    let range = |text: &str| vec![text.parse().unwrap()];
    use StringMatch::{Exact, Prefix, Presence, Suffix};
    // A match, whether it hits with the identity, and without.
    let cases = [
        (Match::default(), false, false),
        (Match { principals: text(Exact, "td/ns/shop/sa/web"), ..Match::default() }, true, false),
        (Match { principals: text(Exact, "spiffe://td/ns/shop/sa/web"), ..Match::default() }, false, false),
        (Match { principals: text(Exact, "other/ns/shop/sa/web"), ..Match::default() }, false, false),
        (Match { principals: text(Prefix, "td/ns/shop"), ..Match::default() }, true, false),
        (Match { principals: text(Suffix, "/sa/web"), ..Match::default() }, true, false),
        (Match { principals: text(Suffix, ""), ..Match::default() }, true, false),
        (Match { principals: vec![Presence], ..Match::default() }, true, false),
        (Match { not_principals: vec![Presence], ..Match::default() }, false, true),
        (Match { not_principals: text(Exact, "td/ns/shop/sa/web"), ..Match::default() }, false, true),
        (Match { not_principals: text(Exact, "td/ns/shop/sa/api"), ..Match::default() }, true, true),
        (Match { namespaces: text(Exact, "shop"), ..Match::default() }, true, false),
        (Match { namespaces: text(Prefix, "sh"), ..Match::default() }, true, false),
        (Match { namespaces: vec![Presence], ..Match::default() }, true, false),
        (Match { not_namespaces: text(Exact, "shop"), ..Match::default() }, false, true),
        (Match { service_accounts: account("shop", "web"), ..Match::default() }, true, false),
        (Match { service_accounts: account("shop", "api"), ..Match::default() }, false, false),
        (Match { service_accounts: account("ns", "web"), ..Match::default() }, false, false),
        (Match { not_service_accounts: account("shop", "web"), ..Match::default() }, false, true),
        (Match { source_ips: range("10.0.0.0/24"), ..Match::default() }, true, true),
        (Match { source_ips: range("10.0.1.0/24"), ..Match::default() }, false, false),
        (Match { source_ips: range("fd00::/8"), ..Match::default() }, false, false),
        (Match { not_source_ips: range("10.0.0.9/32"), ..Match::default() }, false, false),
        (Match { destination_ips: range("10.0.0.1/32"), ..Match::default() }, true, true),
        (Match { not_destination_ips: range("10.0.0.0/8"), ..Match::default() }, false, false),
        (Match { destination_ports: vec![80, 8080], ..Match::default() }, true, true),
        (Match { destination_ports: vec![80], ..Match::default() }, false, false),
        (Match { not_destination_ports: vec![8080], ..Match::default() }, false, false),
        (Match { not_destination_ports: vec![80], ..Match::default() }, true, true),
        // Dimensions are ANDed.
        (
            Match { namespaces: text(Exact, "shop"), destination_ports: vec![80], ..Match::default() },
            false,
            false,
        ),
        (
            Match {
                namespaces: text(Exact, "shop"),
                not_principals: text(Suffix, "/sa/web"),
                ..Match::default()
            },
            false,
            false,
        ),
    ];
    for (one, identified, anonymous) in cases {
        assert_eq!(matches(one.clone(), &facts(Some(PEER))), identified, "{one:?}");
        assert_eq!(matches(one.clone(), &facts(None)), anonymous, "{one:?}, no identity");
    }
}

#[test]
fn an_ipv4_mapped_address_is_the_ipv4_address() {
    let mut facts = facts(None);
    facts.source = "::ffff:10.0.0.9".parse().unwrap();
    let one = Match { source_ips: vec!["10.0.0.0/8".parse().unwrap()], ..Match::default() };
    assert!(matches(one, &facts));
}

#[test]
fn rules_are_ored_clauses_anded_and_matches_ored() {
    let (yes, no) = (from("td/ns/shop/sa/web"), from("td/ns/shop/sa/api"));
    let cases: [(Vec<Vec<Vec<Match>>>, bool); 9] = [
        (vec![], false),
        (vec![vec![]], true),
        (vec![vec![vec![]]], true),
        (vec![vec![vec![no.clone()]], vec![vec![yes.clone()]]], true),
        (vec![vec![vec![no.clone()], vec![yes.clone()]]], false),
        (vec![vec![vec![yes.clone()], vec![yes.clone()]]], true),
        (vec![vec![vec![no.clone(), yes.clone()]]], true),
        (vec![vec![vec![], vec![no]]], false),
        (vec![vec![vec![Match::default()]], vec![vec![yes], vec![Match::default()]]], false),
    ];
    let facts = facts(Some(PEER));
    for (rules, want) in cases {
        assert_eq!(
            Subject::new(&facts).matches(&policy("p", Action::Allow, rules.clone())),
            want,
            "{rules:?}"
        );
    }
}

#[test]
fn deny_comes_before_allow_and_allow_must_match_once_there_is_one() {
    let (web, api) = ("td/ns/shop/sa/web", "td/ns/shop/sa/api");
    let allow = |name: &str, principal: &str| policy(name, Action::Allow, rules(from(principal)));
    let deny = |name: &str, principal: &str| policy(name, Action::Deny, rules(from(principal)));
    type Case = (Vec<Policy>, Result<Option<&'static str>, &'static str>);
    let cases: [Case; 8] = [
        (vec![], Ok(None)),
        (vec![deny("d", api)], Ok(None)),
        (vec![deny("d", web)], Err("explicitly denied by: ns/d")),
        (vec![allow("a", web)], Ok(Some("ns/a"))),
        (vec![allow("a", api)], Err("allow policies exist, but none allowed")),
        (vec![allow("a", api), allow("b", web)], Ok(Some("ns/b"))),
        (vec![allow("a", web), deny("d", web)], Err("explicitly denied by: ns/d")),
        (vec![policy("none", Action::Allow, vec![])], Err("allow policies exist, but none allowed")),
    ];
    let workload = pod("a", "10.0.0.1");
    for (policies, want) in cases {
        let got = authorize(&with(policies.clone()), &workload, &facts(Some(PEER)));
        let got = got.as_ref().map(|permit| permit.allowed_by().map(PolicyKey::as_str));
        assert_eq!(got.map_err(ToString::to_string), want.map_err(str::to_owned), "{policies:?}");
    }
}

#[test]
fn a_permit_carries_the_facts_that_were_judged() {
    let judged = facts(Some(PEER));
    let permit = authorize(&with(vec![]), &pod("a", "10.0.0.1"), &judged).unwrap();
    assert_eq!(permit.destination(), judged.destination);
    assert_eq!(permit.source(), judged.source);
    assert_eq!(permit.peer(), judged.peer.as_ref());
}

#[test]
fn a_policy_of_another_namespace_does_not_apply_and_a_global_one_does() {
    let mut elsewhere = policy("d", Action::Deny, anybody());
    elsewhere.namespace = "other".into();
    let workload = pod("a", "10.0.0.1");
    assert!(authorize(&with(vec![elsewhere.clone()]), &workload, &facts(None)).is_ok());
    elsewhere.scope = Scope::Global;
    let denied = authorize(&with(vec![elsewhere]), &workload, &facts(None)).unwrap_err();
    assert_eq!(denied.policy, Some("other/d".into()));
}

#[test]
fn dry_run_policies_are_not_enforced_and_do_not_count_as_allowing() {
    let mut deny = policy("d", Action::Deny, anybody());
    deny.dry_run = true;
    let mut allow = policy("a", Action::Allow, vec![]);
    allow.dry_run = true;
    let permit = authorize(&with(vec![deny, allow]), &pod("a", "10.0.0.1"), &facts(None)).unwrap();
    assert_eq!(permit.allowed_by(), None);
}

#[test]
fn a_named_policy_that_has_not_arrived_denies_and_its_arrival_decides() {
    let mut workload = pod("a", "10.0.0.1");
    workload.authorization_policies = vec!["ns/late".into()];
    let mut allow_all = policy("all", Action::Allow, anybody());
    let denied = authorize(&with(vec![allow_all.clone()]), &workload, &facts(Some(PEER))).unwrap_err();
    assert_eq!(denied.reason, Rejection::NotArrived("ns/late".into()));
    assert!(denied.is_pending());
    assert_eq!(
        denied.to_string(),
        "policy ns/late applies to the workload but the control plane has not sent it yet"
    );
    // What is known to deny is the better reason.
    let deny = policy("d", Action::Deny, anybody());
    let denied = authorize(&with(vec![deny]), &workload, &facts(Some(PEER))).unwrap_err();
    assert_eq!(denied.reason, Rejection::Denied("ns/d".into()));
    assert!(!denied.is_pending(), "whatever the other one says");
    allow_all.name = "late".into();
    allow_all.scope = Scope::WorkloadSelector;
    assert!(authorize(&with(vec![allow_all.clone()]), &workload, &facts(Some(PEER))).is_ok());
    // A selector policy does not apply to workloads that do not name it.
    allow_all.rules = vec![];
    assert!(authorize(&with(vec![allow_all]), &pod("b", "10.0.0.2"), &facts(None)).is_ok());
}

#[test]
fn strict_mutual_tls_denies_peers_without_identity() {
    let mut strict = policy(
        "strict",
        Action::Deny,
        rules(Match { not_principals: vec![StringMatch::Presence], ..Match::default() }),
    );
    strict.scope = Scope::WorkloadSelector;
    let mut workload = pod("a", "10.0.0.1");
    workload.authorization_policies = vec!["ns/strict".into()];
    let state = with(vec![strict]);
    assert!(authorize(&state, &workload, &facts(None)).is_err());
    assert!(authorize(&state, &workload, &facts(Some(PEER))).is_ok());
}

#[test]
fn a_policy_that_names_an_alias_means_the_same_peer() {
    let aliases = |mesh: &str| isthmus_model::TrustDomains::new(Some(mesh.into()), ["old".into()]);
    let peer = |domain: &str| facts(Some(&format!("spiffe://{domain}/ns/shop/sa/web")));
    let server = Workload { trust_domain: "td".into(), ..pod("a", "10.0.0.1") };
    let not = |principal: &str| Match {
        not_principals: vec![StringMatch::Exact(principal.into())],
        source_ips: vec!["0.0.0.0/0".parse().unwrap()],
        ..Match::default()
    };
    let prefix = Match { principals: vec![StringMatch::Prefix("old/ns/shop/".into())], ..Match::default() };
    // A clause of an ALLOW, the peer's own domain, and whether it is let in with the alias and without.
    let table = [
        (from("old/ns/shop/sa/web"), "td", true, false),
        (from("td/ns/shop/sa/web"), "old", true, false),
        (from("td/ns/shop/sa/web"), "td", true, true),
        (prefix, "td", true, false),
        (from("old/ns/shop/sa/other"), "td", false, false),
        (from("old/ns/shop/sa/web"), "foreign", false, false),
        (not("old/ns/shop/sa/web"), "td", false, true),
        (not("old/ns/shop/sa/web"), "foreign", true, true),
    ];
    for (clause, domain, with_alias, without) in table {
        let mut state = with(vec![policy("p", Action::Allow, rules(clause.clone()))]);
        assert_eq!(authorize(&state, &server, &peer(domain)).is_ok(), without, "{clause:?} {domain}");
        state.trust_domains = aliases("td").into();
        assert_eq!(authorize(&state, &server, &peer(domain)).is_ok(), with_alias, "{clause:?} {domain}");
        // They are the aliases of another mesh's domain.
        state.trust_domains = aliases("elsewhere").into();
        assert_eq!(authorize(&state, &server, &peer(domain)).is_ok(), without, "{clause:?} {domain}");
    }
}

#[tokio::test]
async fn a_change_of_trust_domain_aliases_wakes_subscribers() {
    let state = crate::State::new(crate::Options::default());
    let mut changes = state.subscribe();
    let domains = isthmus_model::TrustDomains::new(None, ["old".into()]);
    state.set_trust_domains(domains.clone());
    assert_eq!(**changes.next().await.trust_domains(), domains);
    let before = state.load();
    state.set_trust_domains(domains);
    assert!(Arc::ptr_eq(&before, &state.load()), "the same ones are no change");
}
