use std::collections::BTreeMap;

use super::*;

fn member(uid: usize, capacity: u32) -> Arc<Workload> {
    Arc::new(Workload { uid: format!("c//Pod/ns/{uid:05}").into(), capacity, ..Workload::default() })
}

fn check(set: &EndpointSet, model: &BTreeMap<WorkloadUid, Arc<Workload>>) {
    let held: Vec<_> = set.iter().map(|w| (w.uid.clone(), w.capacity)).collect();
    let want: Vec<_> = model.values().map(|w| (w.uid.clone(), w.capacity)).collect();
    assert_eq!(held, want);
    for chunk in &set.chunks {
        assert!((1..=CHUNK).contains(&chunk.members().len()));
    }
}

#[test]
fn behaves_like_a_sorted_map() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut set, mut model) = (EndpointSet::default(), BTreeMap::new());
    for step in 0..4000 {
        // Grow for the first half, shrink for the second.
        let grow = rng.u32(0..10) < if step < 2000 { 8 } else { 2 };
        let workload = member(rng.usize(0..900), rng.u32(0..5));
        let old = set.clone();
        let before = old.iter().count();
        if grow {
            model.insert(workload.uid.clone(), Arc::clone(&workload));
            set.insert(workload);
        } else {
            model.remove(&workload.uid);
            set.remove(&workload.uid);
        }
        assert_eq!(old.iter().count(), before, "an older version never changes");
        if step % 50 == 0 {
            check(&set, &model);
        }
    }
    check(&set, &model);
    for uid in model.keys() {
        assert!(set.contains(uid));
    }
    assert!(!set.contains(&"c//Pod/ns/99999".into()));
    for uid in model.keys() {
        set.remove(uid);
    }
    assert!(set.is_empty());
}

#[test]
fn a_change_shares_all_other_chunks() {
    let mut set = EndpointSet::default();
    (0..1000).for_each(|uid| set.insert(member(uid, 1)));
    let mut next = set.clone();
    next.insert(member(500, 9));
    let copied = set.chunks.iter().zip(&next.chunks).filter(|(a, b)| !Arc::ptr_eq(&a.0, &b.0));
    assert_eq!(copied.count(), 1);
}
