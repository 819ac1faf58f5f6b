//! The cost of a scrape of 10,000 series with the labels of a TCP connection, and of counting during one.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use isthmus_rt::metrics::{Family, Registry};
use prometheus_client::metrics::counter::Counter;

const SERIES: u32 = 10_000;
const LABELS: [&str; 20] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_service",
    "destination_service_namespace",
    "destination_service_name",
    "destination_workload",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_cluster",
    "connection_security_policy",
];

type Labels = Vec<(String, String)>;

fn labels(n: u32) -> Labels {
    LABELS
        .iter()
        .map(|name| ((*name).to_owned(), format!("{name}-{}", n % 97 + n / 97 % 13)))
        .chain([("series".to_owned(), n.to_string())])
        .collect()
}

fn benches(criterion: &mut Criterion) {
    let registry = Registry::default();
    let family = Family::<Labels, Counter>::default();
    registry.register("istio_tcp_connections_opened", "Connections", family.clone());
    let all: Vec<Labels> = (0..SERIES).map(labels).collect();
    for one in &all {
        family.get_or_create(one).inc();
    }
    let mut group = criterion.benchmark_group("scrape");
    group.sample_size(20).throughput(Throughput::Elements(SERIES.into()));
    group.bench_function(SERIES.to_string(), |bencher| {
        bencher.iter(|| {
            let mut text = String::new();
            registry.encode_to(&mut text).unwrap_or_else(|error| panic!("{error}"));
            assert!(text.len() > SERIES as usize * 100);
            text
        });
    });
    group.throughput(Throughput::Elements(1));
    let mut turn = 0;
    group.bench_function("count_one", |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % all.len();
            family.get_or_create(black_box(&all[turn])).inc();
        });
    });
    group.finish();
}

criterion_group!(scraping, benches);
criterion_main!(scraping);
