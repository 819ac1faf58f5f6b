//! The cost of a push, from the decoded messages to the published snapshot: 10,000 workloads at once, the same again
//! (a reconnect), and one workload beside 10,000 and 100,000 others, which must cost about the same.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use isthmus_benches::mesh::{mesh, push, workload};
use isthmus_model::Interner;
use isthmus_state::{Options, State};

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("xds_apply");
    group.sample_size(20);
    let all = mesh(10_000);
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("first_push/10000", |bencher| {
        let fresh = || (State::new(Options::default()), Interner::default(), all.clone());
        bencher.iter_batched(
            fresh,
            |(state, mut texts, all)| {
                assert_eq!(push(&state, &mut texts, all).workloads, 10_000);
                (state, texts)
            },
            BatchSize::LargeInput,
        );
    });
    let (state, mut texts) = (State::new(Options::default()), Interner::default());
    push(&state, &mut texts, all.clone());
    group.bench_function("same_again/10000", |bencher| {
        let again = |all| assert_eq!(push(&state, &mut texts, all).workloads, 0);
        bencher.iter_batched(|| all.clone(), again, BatchSize::LargeInput);
    });
    group.throughput(Throughput::Elements(1));
    for workloads in [10_000, 100_000] {
        let (state, mut texts) = (State::new(Options::default()), Interner::default());
        push(&state, &mut texts, mesh(workloads));
        let mut turn = 0_u32;
        group.bench_function(BenchmarkId::new("one_change", workloads), |bencher| {
            let change = || {
                turn += 1;
                vec![workload(workloads / 2, &format!("v{}", turn + 1))]
            };
            let apply = |one| assert_eq!(push(&state, &mut texts, one).workloads, 1);
            bencher.iter_batched(change, apply, BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(applying, benches);
criterion_main!(applying);
