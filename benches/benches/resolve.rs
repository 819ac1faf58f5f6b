//! What one decision costs: an outbound connection to a service of 10, 1,000 and 10,000 endpoints, in plain balancing
//! and by locality, to a pod's address, and to an address outside the mesh.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use isthmus_model::service::{HealthPolicy, LbMode, LbScope};
use isthmus_model::{
    LoadBalancer, Locality, NetworkAddress, NetworkId, Protocol, Service, Visibility, Workload,
};
use isthmus_state::{Batch, Options, State, resolve};

const NETWORK: &str = "east";
const PORT: u16 = 80;

fn address(base: u32, n: u32) -> IpAddr {
    Ipv4Addr::from(base + n).into()
}

fn pod_address(n: u32) -> IpAddr {
    address(0x0a0b_0000, n)
}

fn service(name: &str, vip: u32, load_balancer: Option<LoadBalancer>) -> Service {
    Service {
        name: name.into(),
        namespace: "bench".into(),
        hostname: format!("{name}.bench.svc.cluster.local").into(),
        vips: vec![NetworkAddress { network: NETWORK.into(), address: address(0xac15_0000, vip) }],
        cidr_vips: Vec::new(),
        ports: [(PORT, 8080)].into(),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer,
        ip_families: None,
        canonical: true,
        visibility: Visibility::Public,
    }
}

fn workload(n: u32, services: &[&Service]) -> Workload {
    Workload {
        uid: format!("east//Pod/bench/pod-{n}").into(),
        name: format!("pod-{n}").into(),
        namespace: "bench".into(),
        service_account: "bench".into(),
        addresses: vec![pod_address(n)],
        network: NETWORK.into(),
        protocol: Protocol::Hbone,
        node: format!("node-{}", n % 100).into(),
        locality: Locality {
            region: "r".into(),
            zone: format!("z{}", n % 3).into(),
            subzone: String::new().into(),
        },
        services: services.iter().map(|service| (service.key(), service.ports.clone())).collect(),
        capacity: 1,
        ..Workload::default()
    }
}

fn mesh(endpoints: u32) -> State {
    let state = State::new(Options { own_network: NETWORK.into(), ..Options::default() });
    let near = LoadBalancer {
        routing_preferences: vec![LbScope::Network, LbScope::Region, LbScope::Zone],
        mode: LbMode::Failover,
        health_policy: HealthPolicy::OnlyHealthy,
    };
    let (plain, ranked) = (service("plain", 1, None), service("ranked", 2, Some(near)));
    let upsert_workloads = (0..endpoints).map(|n| workload(n, &[&plain, &ranked])).collect();
    state.apply(Batch { upsert_workloads, upsert_services: vec![plain, ranked], ..Batch::default() });
    state
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("resolve");
    // Decisions per second beside the time of one.
    group.throughput(Throughput::Elements(1));
    let network = NetworkId::from(NETWORK);
    for endpoints in [10, 1_000, 10_000] {
        let state = mesh(endpoints);
        let source = workload(endpoints, &[]);
        let mut rng = fastrand::Rng::with_seed(1);
        for (what, to) in [
            ("service", address(0xac15_0000, 1)),
            ("service_by_locality", address(0xac15_0000, 2)),
            ("pod", pod_address(endpoints / 2)),
            ("unknown", address(0x0101_0000, 1)),
        ] {
            let original = SocketAddr::new(to, PORT);
            group.bench_function(BenchmarkId::new(what, endpoints), |bencher| {
                bencher.iter(|| {
                    let snapshot = state.load();
                    resolve(&snapshot, &source, black_box(original), &network, &mut rng)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(resolving, benches);
criterion_main!(resolving);
