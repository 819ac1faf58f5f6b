//! What a push costs, from the decoded messages to the published snapshot: 10,000 workloads at once, the same again
//! (a reconnect), and one workload beside 10,000 and 100,000 others, which must cost about the same.

use std::collections::HashMap;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use isthmus_model::wire::{self, Resource};
use isthmus_proto::workload::{self as proto, address};
use isthmus_state::{Batch, Options, State};

const SERVICES: u32 = 1_000;

fn service_name(n: u32) -> String {
    format!("service-{n}.bench.svc.cluster.local")
}

fn port() -> proto::Port {
    proto::Port { service_port: 80, target_port: 8080, app_protocol: 0 }
}

fn service(n: u32) -> proto::Address {
    let vip = proto::NetworkAddress {
        network: "east".to_owned(),
        address: (0xac15_0000 + n).to_be_bytes().to_vec(),
        length: None,
    };
    let service = proto::Service {
        name: format!("service-{n}"),
        namespace: "bench".to_owned(),
        hostname: service_name(n),
        addresses: vec![vip],
        ports: vec![port()],
        canonical: true,
        ..proto::Service::default()
    };
    proto::Address { r#type: Some(address::Type::Service(service)) }
}

fn workload(n: u32, revision: &str) -> proto::Address {
    let membership =
        (format!("bench/{}", service_name(n % SERVICES)), proto::PortList { ports: vec![port()] });
    let workload = proto::Workload {
        uid: format!("east//Pod/bench/pod-{n}"),
        name: format!("pod-{n}"),
        namespace: "bench".to_owned(),
        addresses: vec![(0x0a0b_0000 + n).to_be_bytes().to_vec()],
        network: "east".to_owned(),
        tunnel_protocol: proto::TunnelProtocol::Hbone.into(),
        service_account: format!("account-{}", n % 50),
        node: format!("node-{}", n % 200),
        canonical_name: format!("service-{}", n % SERVICES),
        canonical_revision: revision.to_owned(),
        workload_name: format!("service-{}", n % SERVICES),
        cluster_id: "east".to_owned(),
        services: HashMap::from([membership]),
        ..proto::Workload::default()
    };
    proto::Address { r#type: Some(address::Type::Workload(workload)) }
}

fn mesh(workloads: u32) -> Vec<proto::Address> {
    (0..SERVICES).map(service).chain((0..workloads).map(|n| workload(n, "v1"))).collect()
}

/// As the xDS client does it: what converts is applied together.
fn push(state: &State, resources: Vec<proto::Address>) -> usize {
    let mut batch = Batch::default();
    for resource in resources {
        match wire::address(resource) {
            Ok(Resource::Workload(workload)) => batch.upsert_workloads.push(workload),
            Ok(Resource::Service(service)) => batch.upsert_services.push(service),
            Err(error) => panic!("{error}"),
        }
    }
    state.apply(batch).workloads
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("xds_apply");
    group.sample_size(20);
    let all = mesh(10_000);
    group.throughput(Throughput::Elements(10_000));
    group.bench_function("first_push/10000", |bencher| {
        let fresh = || (State::new(Options::default()), all.clone());
        bencher.iter_batched(
            fresh,
            |(state, all)| {
                assert_eq!(push(&state, all), 10_000);
                state
            },
            BatchSize::LargeInput,
        );
    });
    let state = State::new(Options::default());
    push(&state, all.clone());
    group.bench_function("same_again/10000", |bencher| {
        bencher.iter_batched(|| all.clone(), |all| assert_eq!(push(&state, all), 0), BatchSize::LargeInput);
    });
    group.throughput(Throughput::Elements(1));
    for workloads in [10_000, 100_000] {
        let state = State::new(Options::default());
        push(&state, mesh(workloads));
        let mut turn = 0_u32;
        group.bench_function(BenchmarkId::new("one_change", workloads), |bencher| {
            let change = || {
                turn += 1;
                vec![workload(workloads / 2, &format!("v{}", turn + 1))]
            };
            bencher.iter_batched(change, |one| assert_eq!(push(&state, one), 1), BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(applying, benches);
criterion_main!(applying);
