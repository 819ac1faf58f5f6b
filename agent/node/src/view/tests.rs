use super::*;
use crate::pod::tests::pod;
use isthmus_proto::enroll::Reason;

fn namespace(name: &str, mode: Option<&str>) -> NamespaceLabels {
    let labels =
        mode.map(|mode| ("istio.io/dataplane-mode".to_owned(), mode.to_owned())).into_iter().collect();
    NamespaceLabels { name: name.to_owned(), labels }
}

fn uids(names: &[&str]) -> Vec<PodUid> {
    names.iter().map(|name| format!("uid-{name}").into()).collect()
}

fn listed(pods: &[Pod]) -> View {
    let mut view = View::default();
    view.apply(Event::Pod(Watched::Restarted));
    for pod in pods {
        view.apply(Event::Pod(Watched::Listed(pod.clone())));
    }
    view.apply(Event::Pod(Watched::ListDone));
    view
}

#[test]
fn it_is_synced_when_both_lists_were_read() {
    let mut view = listed(&[]);
    assert!(!view.is_synced());
    view.apply(Event::Namespace(Watched::Restarted));
    assert!(!view.is_synced());
    view.apply(Event::Namespace(Watched::ListDone));
    assert!(view.is_synced());
}

#[test]
fn a_list_after_a_lost_watch_tells_what_was_deleted_meanwhile() {
    let mut view = listed(&[pod("a", ""), pod("b", "")]);
    view.apply(Event::Pod(Watched::Restarted));
    assert!(view.apply(Event::Pod(Watched::Listed(pod("b", "")))).is_empty(), "nothing changed for b");
    assert_eq!(view.apply(Event::Pod(Watched::ListDone)), uids(&["a"]));
    assert!(view.pod(&"uid-a".into()).is_none());
    assert!(view.startable("sample", "a").is_none());
    assert!(view.startable("sample", "b").is_some());
}

#[test]
fn a_namespaces_label_touches_its_pods_only() {
    let mut other = pod("c", "");
    other.namespace = "elsewhere".to_owned();
    let mut view = listed(&[pod("a", ""), other]);
    assert_eq!(view.apply(Event::Namespace(Watched::Applied(namespace("sample", None)))), uids(&["a"]));
    assert!(view.apply(Event::Namespace(Watched::Applied(namespace("sample", None)))).is_empty());
    let touched = view.apply(Event::Namespace(Watched::Applied(namespace("sample", Some("ambient")))));
    assert_eq!(touched, uids(&["a"]));
}

#[test]
fn the_decision_waits_for_the_namespace() {
    let mut plain = pod("a", "");
    plain.labels.clear();
    let mut view = listed(std::slice::from_ref(&plain));
    let rules = Rules::default();
    assert_eq!(view.decide(&rules, &plain), None);
    view.apply(Event::Namespace(Watched::Applied(namespace("sample", None))));
    assert_eq!(view.decide(&rules, &plain), Some(Decision::Skip(Reason::NotSelected)));
    view.apply(Event::Namespace(Watched::Applied(namespace("sample", Some("ambient")))));
    assert_eq!(view.decide(&rules, &plain), Some(Decision::Enrol));
}

#[test]
fn a_successor_takes_over_the_name() {
    let mut view = listed(&[pod("a", "")]);
    let successor = Pod { uid: "uid-2".into(), ..pod("a", "") };
    let touched = view.apply(Event::Pod(Watched::Applied(successor)));
    assert_eq!(touched, [PodUid::from("uid-a"), "uid-2".into()]);
    // The late deletion of the first must not hide the second.
    view.apply(Event::Pod(Watched::Deleted(pod("a", ""))));
    assert_eq!(view.startable("sample", "a").unwrap().uid, "uid-2".into());
}

#[test]
fn a_pod_on_its_way_out_is_not_the_one_that_starts() {
    for (terminated, deleting) in [(true, false), (false, true)] {
        let view = listed(&[Pod { terminated, deleting, ..pod("a", "") }]);
        assert!(view.startable("sample", "a").is_none());
    }
}
