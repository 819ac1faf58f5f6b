use std::collections::BTreeMap;

use super::*;

fn has(table: &Table<u32>, n: u32) -> bool {
    table.get(Key::of(&n)).any(|held| *held == n)
}

/// Against a map, in an order that chance gives; every old version stays what it was.
#[test]
fn behaves_like_a_map_and_older_versions_stay() {
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut table, mut model) = (Table::default(), BTreeMap::new());
    let mut versions = Vec::new();
    for turn in 0..20_000_u32 {
        let n = rng.u32(0..4_000);
        if model.remove(&n).is_some() {
            table.remove(Key::of(&n), |held| *held == n);
        } else {
            model.insert(n, ());
            table.insert(Key::of(&n), n);
        }
        if turn % 997 == 0 {
            versions.push((table.clone(), model.clone()));
        }
    }
    versions.push((table, model));
    for (table, model) in versions {
        assert_eq!(table.len(), model.len());
        assert_eq!(table.iter().size_hint().0, model.len());
        let mut all: Vec<u32> = table.iter().copied().collect();
        all.sort_unstable();
        assert!(all.iter().eq(model.keys()));
        assert!((0..4_000).all(|n| has(&table, n) == model.contains_key(&n)));
    }
}

#[test]
fn values_of_one_key_keep_their_order() {
    let (mut table, key) = (Table::default(), Key::of("all of them"));
    for n in 0..200 {
        table.insert(key, n);
        table.insert(Key::of(&n), n + 1_000);
    }
    table.remove(key, |held| *held == 100);
    table.remove(key, |held| *held == 100);
    assert!(table.get(key).copied().eq((0..100).chain(101..200)));
    assert_eq!(table.len(), 399);
    assert!((0..200).all(|n| table.get(Key::of(&n)).any(|held| *held == n + 1_000)));
}

#[test]
fn a_slot_is_two_words_and_leaves_are_well_filled() {
    let mut table = Table::default();
    for n in 0..100_000_u64 {
        table.insert(Key::of(&format!("east//Pod/bench/pod-{n}")), Arc::new(n));
    }
    assert_eq!(size_of::<Slot<Arc<u64>>>(), 16);
    let (mut leaves, mut spare) = (0, 0);
    let mut open = vec![&table.root];
    while let Some(node) = open.pop() {
        match node {
            Node::Empty => {}
            Node::Leaf(slots) => (leaves, spare) = (leaves + 1, spare + slots.capacity() - slots.len()),
            Node::Branch(children) => open.extend(children.iter()),
        }
    }
    // A hash that did not spread would fill few of them, or many with little.
    assert!((100_000 / LEAF..100_000 / 4).contains(&leaves), "{leaves} leaves");
    assert!(spare < 10_000, "{spare} slots to spare");
}
