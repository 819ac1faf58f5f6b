//! The cost of authorizing an inbound connection with 10,000 policies: spread over 50 namespaces, and all of them in the
//! pod's own, of which the first, the last or none admits the client.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use isthmus_benches::mesh::policy;
use isthmus_model::{Facts, Policy, PolicyKey, SpiffeId, Workload};
use isthmus_state::{Batch, Options, State, authorize};

const POLICIES: u32 = 10_000;

fn mesh(upsert_policies: Vec<(PolicyKey, Policy)>) -> State {
    let state = State::new(Options::default());
    state.apply(Batch { upsert_policies, ..Batch::default() });
    state
}

/// The client that policy `n` admits.
fn client(namespace: &str, n: u32) -> Facts {
    let id = SpiffeId::new("cluster.local".into(), namespace.into(), format!("client-{n}").as_str().into());
    Facts { peer: Some(id), source: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 8080).into() }
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("authorize");
    let pod = Workload { namespace: "team-0".into(), ..Workload::default() };
    let spread = mesh((0..POLICIES).map(policy).collect());
    let own = |n| {
        let (key, mut policy) = policy(n);
        policy.namespace = "team-0".into();
        // Keys are in order of their numbers, and so are the policies of a namespace.
        (PolicyKey::from(format!("team-0/{n:05}-{key}")), policy)
    };
    let own = mesh((0..POLICIES).map(own).collect());
    let last = POLICIES - 1;
    let cases = [
        ("spread/first", &spread, client("team-0", 0), true),
        ("spread/none", &spread, client("nowhere", 0), false),
        ("own/first", &own, client("team-0", 0), true),
        ("own/last", &own, client(&format!("team-{}", last % 50), last), true),
        ("own/none", &own, client("nowhere", 0), false),
    ];
    for (name, state, facts, allowed) in cases {
        assert_eq!(authorize(&state.load(), &pod, &facts).is_ok(), allowed, "{name}");
        group.bench_function(format!("{POLICIES}/{name}"), |bencher| {
            bencher.iter(|| {
                let snapshot = state.load();
                authorize(&snapshot, &pod, black_box(&facts)).is_ok()
            });
        });
    }
    group.finish();
}

criterion_group!(judging, benches);
criterion_main!(judging);
