use std::collections::BTreeMap;

use super::*;

fn member(uid: usize, capacity: u32, status: Health) -> Arc<Workload> {
    Arc::new(Workload { uid: format!("c//Pod/ns/{uid:05}").into(), capacity, status, ..Workload::default() })
}

fn check(set: &EndpointSet, model: &BTreeMap<WorkloadUid, Arc<Workload>>) {
    let held: Vec<_> = set.iter().map(|w| (w.uid.clone(), w.capacity)).collect();
    let want: Vec<_> = model.values().map(|w| (w.uid.clone(), w.capacity)).collect();
    assert_eq!(held, want);
    for chunk in &set.chunks {
        assert!((1..=CHUNK).contains(&chunk.members.len()));
        let mut fresh = chunk.clone();
        fresh.weigh();
        assert_eq!(chunk.weight, fresh.weight);
    }
}

#[test]
fn it_behaves_as_a_sorted_map_whatever_is_done_to_it() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut set, mut model) = (EndpointSet::default(), BTreeMap::new());
    for step in 0..4000 {
        // Grow for the first half, shrink for the second.
        let grow = rng.u32(0..10) < if step < 2000 { 8 } else { 2 };
        let workload = member(rng.usize(0..900), rng.u32(0..5), Health::Healthy);
        let old = set.clone();
        let before = old.iter().count();
        if grow {
            model.insert(workload.uid.clone(), Arc::clone(&workload));
            set.put(workload);
        } else {
            model.remove(&workload.uid);
            set.take(&workload.uid);
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
        set.take(uid);
    }
    assert!(set.is_empty());
}

#[test]
fn a_change_shares_all_other_chunks() {
    let mut set = EndpointSet::default();
    (0..1000).for_each(|uid| set.put(member(uid, 1, Health::Healthy)));
    let mut next = set.clone();
    next.put(member(500, 9, Health::Healthy));
    let copied = set.chunks.iter().zip(&next.chunks).filter(|(a, b)| !Arc::ptr_eq(&a.members, &b.members));
    assert_eq!(copied.count(), 1);
}

#[test]
fn the_choice_follows_capacity_and_health() {
    let mut set = EndpointSet::default();
    for uid in 0..200 {
        set.put(member(uid, 0, Health::Healthy));
    }
    set.put(member(3, 1, Health::Healthy));
    set.put(member(150, 3, Health::Healthy));
    set.put(member(199, 4, Health::Unhealthy));
    let counts = |among| {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut counts = BTreeMap::<WorkloadUid, u32>::new();
        for _ in 0..8000 {
            *counts.entry(set.choose(among, &mut rng).unwrap().uid.clone()).or_default() += 1;
        }
        counts.into_values().collect::<Vec<_>>()
    };
    let near = |counts: Vec<u32>, want: &[u32]| {
        assert_eq!(counts.len(), want.len());
        for (got, want) in counts.iter().zip(want) {
            assert!(got.abs_diff(*want) < 250, "{got} is not about {want}");
        }
    };
    near(counts(Among::Healthy), &[2000, 6000]);
    near(counts(Among::All), &[1000, 3000, 4000]);
}

#[test]
fn nothing_is_chosen_of_nothing() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut set = EndpointSet::default();
    assert!(set.choose(Among::All, &mut rng).is_none());
    set.put(member(1, 0, Health::Healthy));
    assert!(set.choose(Among::All, &mut rng).is_none());
    set.put(member(2, 5, Health::Unhealthy));
    assert!(set.choose(Among::Healthy, &mut rng).is_none());
    assert!(set.choose(Among::All, &mut rng).is_some());
}
