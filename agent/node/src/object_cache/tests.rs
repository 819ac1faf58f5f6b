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

fn listed(pods: &[Pod]) -> ObjectCache {
    let mut cache = ObjectCache::default();
    cache.apply(ObjectEvent::Pod(WatchEvent::Init));
    for pod in pods {
        cache.apply(ObjectEvent::Pod(WatchEvent::InitApply(pod.clone())));
    }
    cache.apply(ObjectEvent::Pod(WatchEvent::InitDone));
    cache
}

#[test]
fn the_cache_is_synced_after_both_lists() {
    let mut cache = listed(&[]);
    assert!(!cache.is_synced());
    cache.apply(ObjectEvent::Namespace(WatchEvent::Init));
    assert!(!cache.is_synced());
    cache.apply(ObjectEvent::Namespace(WatchEvent::InitDone));
    assert!(cache.is_synced());
}

#[test]
fn a_list_after_a_lost_watch_reports_missed_deletions() {
    let mut cache = listed(&[pod("a", ""), pod("b", "")]);
    cache.apply(ObjectEvent::Pod(WatchEvent::Init));
    assert!(
        cache.apply(ObjectEvent::Pod(WatchEvent::InitApply(pod("b", "")))).is_empty(),
        "nothing changed for b"
    );
    assert_eq!(cache.apply(ObjectEvent::Pod(WatchEvent::InitDone)), uids(&["a"]));
    assert!(cache.pod(&"uid-a".into()).is_none());
    assert!(cache.startable("sample", "a").is_none());
    assert!(cache.startable("sample", "b").is_some());
}

#[test]
fn a_namespace_label_affects_only_the_pods_of_the_namespace() {
    let mut other = pod("c", "");
    other.pod.namespace = "elsewhere".into();
    let mut cache = listed(&[pod("a", ""), other]);
    assert_eq!(
        cache.apply(ObjectEvent::Namespace(WatchEvent::Apply(namespace("sample", None)))),
        uids(&["a"])
    );
    assert!(cache.apply(ObjectEvent::Namespace(WatchEvent::Apply(namespace("sample", None)))).is_empty());
    let changed =
        cache.apply(ObjectEvent::Namespace(WatchEvent::Apply(namespace("sample", Some("ambient")))));
    assert_eq!(changed, uids(&["a"]));
}

#[test]
fn there_is_no_decision_without_the_namespace() {
    let mut plain = pod("a", "");
    plain.labels.clear();
    let mut cache = listed(std::slice::from_ref(&plain));
    let rules = Rules::default();
    assert_eq!(cache.decide(&rules, &plain), None);
    cache.apply(ObjectEvent::Namespace(WatchEvent::Apply(namespace("sample", None))));
    assert_eq!(cache.decide(&rules, &plain), Some(Decision::Skip(Reason::NotSelected)));
    cache.apply(ObjectEvent::Namespace(WatchEvent::Apply(namespace("sample", Some("ambient")))));
    assert_eq!(cache.decide(&rules, &plain), Some(Decision::Enrol));
}

#[test]
fn a_new_pod_of_the_same_name_replaces_the_old_one() {
    let mut cache = listed(&[pod("a", "")]);
    let mut successor = pod("a", "");
    successor.pod.uid = "uid-2".into();
    let changed = cache.apply(ObjectEvent::Pod(WatchEvent::Apply(successor)));
    assert_eq!(changed, [PodUid::from("uid-a"), "uid-2".into()]);
    // The late deletion of the first must not hide the second.
    cache.apply(ObjectEvent::Pod(WatchEvent::Delete(pod("a", ""))));
    assert_eq!(cache.startable("sample", "a").unwrap().pod.uid, "uid-2".into());
}

#[test]
fn a_terminated_or_deleting_pod_is_not_startable() {
    for (terminated, deleting) in [(true, false), (false, true)] {
        let cache = listed(&[Pod { terminated, deleting, ..pod("a", "") }]);
        assert!(cache.startable("sample", "a").is_none());
    }
}
