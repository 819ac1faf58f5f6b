//! Random sequences of requests, results and disconnections against an oracle of plain sets.

use std::collections::BTreeMap;

use isthmus_kit::random::sequences;

use super::*;

const PODS: [&str; 4] = ["a", "b", "c", "d"];

/// Pods by uid and namespace, as a reader of the protocol expects them.
#[derive(Default)]
struct Oracle {
    running: BTreeMap<PodUid, u32>,
    pending: BTreeMap<PodUid, u32>,
    named: Option<BTreeSet<PodUid>>,
    connected: bool,
}

fn entry(uid: &PodUid, netns: u32) -> Entry<u32> {
    let pod = PodRef {
        uid: uid.clone(),
        namespace: "ns".into(),
        name: uid.as_str().into(),
        service_account: "s".into(),
    };
    Entry { pod, netns }
}

impl Oracle {
    fn check(&self, table: &PodTable<u32>) {
        let running = table.running().map(|(uid, entry)| (uid.clone(), entry.netns));
        assert_eq!(running.collect::<BTreeMap<_, _>>(), self.running);
        let pending = table.pending().map(|(entry, _)| (entry.pod.uid.clone(), entry.netns));
        assert_eq!(pending.collect::<BTreeMap<_, _>>(), self.pending);
        assert!(self.pending.keys().all(|uid| !self.running.contains_key(uid)), "both running and pending");
        let ready = self.connected && self.named.is_none() && self.pending.is_empty();
        assert_eq!(table.is_ready(), ready);
        assert_eq!(table.next_retry().is_some(), !self.pending.is_empty());
    }

    fn add(&mut self, table: &mut PodTable<u32>, uid: &PodUid, netns: u32, works: bool, now: Instant) {
        if let Some(named) = &mut self.named {
            named.insert(uid.clone());
        }
        let known = self.running.get(uid).copied();
        let action = table.add(uid, &netns);
        match known {
            Some(old) if old == netns => return assert_eq!(action, AddAction::None),
            Some(_) => assert_eq!(action, AddAction::Restart),
            None => assert_eq!(action, AddAction::Start),
        }
        self.running.remove(uid);
        self.started(table, uid, netns, works, now);
    }

    fn started(&mut self, table: &mut PodTable<u32>, uid: &PodUid, netns: u32, works: bool, now: Instant) {
        // A failure of the process: those of a pod leave readiness alone.
        let result = if works { Ok(()) } else { Err((Blame::Process, "no descriptor".into())) };
        table.started(entry(uid, netns), result, now);
        self.pending.remove(uid);
        if works { &mut self.running } else { &mut self.pending }.insert(uid.clone(), netns);
    }
}

#[test]
fn random_requests_leave_the_pods_that_the_node_role_named() {
    sequences(500, |random| {
        let (mut table, mut now) = (PodTable::default(), Instant::now());
        let mut oracle = Oracle { named: Some(BTreeSet::new()), ..Oracle::default() };
        for _ in 0..random.usize(1..150) {
            let uid: PodUid = PODS[random.usize(..PODS.len())].into();
            let (netns, works) = (random.u32(..3), random.u8(..4) > 0);
            match random.u8(..14) {
                0..4 => oracle.add(&mut table, &uid, netns, works, now),
                4 => match (&mut oracle.named, table.keep(uid.clone())) {
                    (Some(named), Ok(())) => drop(named.insert(uid)),
                    (None, refused) => assert_eq!(refused, Err(ProtocolError::KeepAfterSnapshot(uid))),
                    (Some(_), refused) => panic!("{refused:?}"),
                },
                5..7 => {
                    let stopped = table.del(&uid);
                    oracle.pending.remove(&uid);
                    match &mut oracle.named {
                        Some(named) => {
                            named.remove(&uid);
                            assert_eq!(stopped, None, "the end of the snapshot decides");
                        }
                        None => assert_eq!(stopped.is_some(), oracle.running.remove(&uid).is_some()),
                    }
                }
                7..10 => match (oracle.named.take(), table.snapshot_sent()) {
                    (Some(named), Ok(gone)) => {
                        let gone: BTreeSet<_> = gone.into_iter().map(|pod| pod.uid).collect();
                        let unnamed = oracle.running.keys().filter(|uid| !named.contains(*uid));
                        assert_eq!(gone, unnamed.cloned().collect());
                        oracle.running.retain(|uid, _| named.contains(uid));
                        oracle.pending.retain(|uid, _| named.contains(uid));
                    }
                    (None, refused) => assert_eq!(refused, Err(ProtocolError::SecondSnapshot)),
                    (Some(_), refused) => panic!("{refused:?}"),
                },
                10 => {
                    table.connected();
                    (oracle.connected, oracle.named) = (true, Some(BTreeSet::new()));
                    oracle.pending.clear();
                }
                11 => {
                    table.disconnected();
                    oracle.connected = false;
                    oracle.pending.clear();
                }
                12 => now += Duration::from_millis(random.u64(..8_000)),
                _ => {
                    if let Some(due) = table.due(now) {
                        assert_eq!(oracle.pending.get(&due.pod.uid), Some(&due.netns));
                        oracle.started(&mut table, &due.pod.uid, due.netns, works, now);
                    } else {
                        assert!(table.next_retry().is_none_or(|at| at > now));
                    }
                }
            }
            oracle.check(&table);
        }
    });
}
