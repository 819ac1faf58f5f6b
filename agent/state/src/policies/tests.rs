use super::*;
use isthmus_model::{Action, Facts, Outline};

use crate::{Batch, Options, State, authorize};

const ROOT: &str = "istio-system";

fn refused(key: &str, outline: Option<(Scope, Action)>) -> RefusedPolicy {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let outline =
        outline.map(|(scope, action)| Outline { namespace: namespace.into(), scope, action, dry_run: false });
    RefusedPolicy { key: key.into(), outline }
}

fn refuse(refused: RefusedPolicy) -> Batch {
    Batch { refused_policies: vec![refused], ..Batch::default() }
}

fn accept(
    key: &str,
    scope: Scope,
    action: Action,
    rules: Vec<Vec<Vec<isthmus_model::policy::Match>>>,
) -> Batch {
    let (namespace, name) = key.split_once('/').unwrap();
    let policy =
        Policy { name: name.into(), namespace: namespace.into(), scope, action, rules, dry_run: false };
    Batch { upsert_policies: vec![(key.into(), policy)], ..Batch::default() }
}

fn gone(key: &str) -> Batch {
    Batch { remove_policies: vec![key.into()], ..Batch::default() }
}

fn mesh(root: &str) -> State {
    State::new(Options { root_namespace: root.into(), ..Options::default() })
}

/// Whether a workload of a namespace, which names these policies, takes a connection.
fn takes(state: &State, namespace: &str, named: &[&str]) -> bool {
    let workload = Workload {
        namespace: namespace.into(),
        authorization_policies: named.iter().map(|key| (*key).into()).collect(),
        ..Workload::default()
    };
    let facts = Facts { peer: None, source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 80).into() };
    authorize(&state.load(), &workload, &facts).is_ok()
}

/// What is rejected, and which workloads are then reachable: one of `shop`, one of `shop` that names the policy, one
/// elsewhere.
#[test]
fn a_rejected_policy_without_earlier_version_denies_what_it_might_deny() {
    use {Action::Allow, Action::Deny, Scope::Global, Scope::Namespace, Scope::WorkloadSelector};
    for (key, outline, root, [shop, named, elsewhere]) in [
        ("shop/p", Some((Namespace, Allow)), ROOT, [false, false, true]),
        ("shop/p", Some((Namespace, Deny)), ROOT, [false, false, true]),
        ("shop/p", Some((WorkloadSelector, Allow)), ROOT, [true, false, true]),
        ("shop/p", Some((WorkloadSelector, Deny)), ROOT, [true, false, true]),
        ("istio-system/p", Some((Global, Allow)), ROOT, [false, false, false]),
        ("istio-system/p", Some((Global, Deny)), ROOT, [false, false, false]),
        ("shop/p", None, ROOT, [false, false, true]),
        ("istio-system/p", None, ROOT, [false, false, false]),
        ("mesh/p", None, "mesh", [false, false, false]),
        ("shop/p", None, "", [false, false, false]),
        ("p", None, ROOT, [false, false, false]),
    ] {
        let state = mesh(root);
        assert_eq!(state.apply(refuse(refused(key, outline))).policies, 1, "{key}");
        let seen = [takes(&state, "shop", &[]), takes(&state, "shop", &[key]), takes(&state, "web", &[])];
        assert_eq!(seen, [shop, named, elsewhere], "{key} {outline:?} with root {root:?}");
        assert!(!state.apply(refuse(refused(key, outline))).is_change(), "{key}: it was refused before");
        assert_eq!(state.apply(gone(key)).policies, 1);
        assert!(takes(&state, "shop", &[]) && takes(&state, "web", &[]), "{key} is gone");
        assert!(state.load().policies.stand_ins.is_empty());
    }
}

#[test]
fn a_rejected_allow_policy_leaves_the_others_in_force() {
    let state = mesh(ROOT);
    state.apply(refuse(refused("shop/bad", Some((Scope::Namespace, Action::Allow)))));
    state.apply(accept("shop/good", Scope::Namespace, Action::Allow, vec![vec![]]));
    assert!(takes(&state, "shop", &[]));
}

#[test]
fn the_last_accepted_version_stays_in_force() {
    let state = mesh(ROOT);
    for (action, rules, passes) in [
        (Action::Allow, vec![vec![]], true),
        (Action::Allow, vec![], false),
        (Action::Deny, vec![], true),
        (Action::Deny, vec![vec![]], false),
    ] {
        state.apply(accept("shop/p", Scope::Namespace, action, rules));
        assert_eq!(takes(&state, "shop", &[]), passes);
        for outline in [None, Some((Scope::Global, Action::Deny)), Some((Scope::Namespace, Action::Allow))] {
            assert!(!state.apply(refuse(refused("shop/p", outline))).is_change());
            assert_eq!(takes(&state, "shop", &[]), passes, "{action:?} after {outline:?}");
        }
    }
}

#[test]
fn an_accepted_version_replaces_the_stand_in_and_stays() {
    let state = mesh(ROOT);
    state.apply(refuse(refused("shop/p", None)));
    // Once more of it can be read, that counts.
    assert!(
        state.apply(refuse(refused("shop/p", Some((Scope::WorkloadSelector, Action::Deny))))).is_change()
    );
    assert!(takes(&state, "shop", &[]) && !takes(&state, "shop", &["shop/p"]));
    // It may be the very policy that stood in: it is an accepted one all the same.
    state.apply(accept("shop/p", Scope::WorkloadSelector, Action::Deny, vec![vec![]]));
    assert!(!state.apply(refuse(refused("shop/p", None))).is_change());
    assert!(takes(&state, "shop", &[]));
}

#[test]
fn a_namespace_with_a_global_policy_is_the_root() {
    let state = mesh(ROOT);
    state.apply(accept("top/all", Scope::Global, Action::Allow, vec![vec![]]));
    state.apply(refuse(refused("top/odd", None)));
    assert!(!takes(&state, "shop", &[]));
}

#[test]
fn a_rejected_dry_run_policy_denies_nothing() {
    let state = mesh(ROOT);
    let mut policy = refused("shop/p", Some((Scope::Namespace, Action::Deny)));
    policy.outline.as_mut().unwrap().dry_run = true;
    state.apply(refuse(policy));
    assert!(takes(&state, "shop", &[]));
}

#[test]
fn effective_policies_differ_exactly_when_a_verdict_may() {
    let state = State::new(Options::default());
    let mut workload = crate::fixture::pod("a", "10.0.0.1");
    workload.authorization_policies = vec!["ns/own".into()];
    let rules = || vec![vec![vec![isthmus_model::policy::Match::default()]]];
    let effective_policies = |workload: &Workload| state.load().effective_policies(workload);
    let mut last = effective_policies(&workload);
    for (what, push, differs) in [
        ("nothing", Batch::default(), false),
        ("another namespace", accept("other/p", Scope::Namespace, Action::Deny, vec![]), false),
        (
            "a selector that it does not name",
            accept("ns/q", Scope::WorkloadSelector, Action::Deny, vec![]),
            false,
        ),
        ("its namespace", accept("ns/p", Scope::Namespace, Action::Allow, vec![]), true),
        ("the same once more", accept("ns/p", Scope::Namespace, Action::Allow, vec![]), false),
        ("the same policy, changed", accept("ns/p", Scope::Namespace, Action::Allow, rules()), true),
        ("the whole mesh", accept("root/p", Scope::Global, Action::Allow, vec![]), true),
        ("the one that it names", accept("ns/own", Scope::WorkloadSelector, Action::Allow, vec![]), true),
        ("which changes", accept("ns/own", Scope::WorkloadSelector, Action::Allow, rules()), true),
        (
            "a refused one in its namespace",
            refuse(refused("ns/bad", Some((Scope::Namespace, Action::Deny)))),
            true,
        ),
        ("one goes", Batch { remove_policies: vec!["ns/p".into()], ..Batch::default() }, true),
        ("the named one goes", Batch { remove_policies: vec!["ns/own".into()], ..Batch::default() }, true),
    ] {
        state.apply(push);
        let now = effective_policies(&workload);
        assert_eq!(now != last, differs, "{what}");
        last = now;
    }
    state.set_trust_domains(TrustDomains::new(Some("td".into()), ["old".into()]));
    assert!(effective_policies(&workload) != last, "names of the trust domain");
    last = effective_policies(&workload);
    workload.authorization_policies.push("ns/more".into());
    assert!(effective_policies(&workload) != last, "its own list");
    last = effective_policies(&workload);
    workload.trust_domain = "td".into();
    assert!(effective_policies(&workload) != last, "its own trust domain");
}
