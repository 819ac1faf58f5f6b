//! What a query's log line says.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

use std::time::Duration;

use isthmus_dns::{Config, DnsProxy, Metrics};
use isthmus_kit::logs::LogCapture;
use isthmus_model::{NetworkAddress, PodRef, Service, Visibility, Workload};
use isthmus_rt::drain;
use isthmus_state::{Batch, Options, State};
use isthmus_sys::socket::Sockets;
use tokio::net::UdpSocket;

fn mesh() -> State {
    let state = State::new(Options::default());
    let vip = |text: &str| NetworkAddress { network: "".into(), address: text.parse().unwrap() };
    let web = Service {
        name: "web".into(),
        namespace: "ns".into(),
        hostname: "web.ns.svc.cluster.local".into(),
        vips: vec![vip("10.96.0.1"), vip("10.96.0.2")],
        cidr_vips: vec![],
        ports: [(80, 8080)].into(),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancer: None,
        ip_families: None,
        canonical: true,
        visibility: Visibility::Public,
    };
    let pod = Workload {
        uid: "c//Pod/ns/a".into(),
        name: "a".into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
        ..Workload::default()
    };
    state.apply(Batch { upsert_workloads: vec![pod], upsert_services: vec![web], ..Batch::default() });
    state
}

/// A question for addresses of `web`.
fn question(kind: u8) -> Vec<u8> {
    let header = [0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    [&header[..], b"\x03web\0", &[0, kind, 0, 1]].concat()
}

#[tokio::test]
async fn a_log_line_counts_the_addresses_that_were_found() {
    let log = LogCapture::start(|metadata| metadata.target() == "dns");
    let (_drain, watch) = drain::channel();
    let pod =
        PodRef { uid: "u".into(), name: "a".into(), namespace: "ns".into(), service_account: "sa".into() };
    let metrics = Metrics::register(&isthmus_rt::metrics::Registry::default());
    let (config, sockets) = (Config { port: 0, ..Config::default() }, Sockets::host().with_ipv6(false));
    let share = isthmus_rt::fair::FairScheduler::default().share();
    let proxy = DnsProxy::start(mesh(), pod, config, &sockets, &watch, metrics, share).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(proxy.udp_addresses()[0]).await.unwrap();
    for (kind, expected) in [
        (1, ["query=\"a\"", "domain=\"web\"", "result=\"success\"", "endpoints=2"]),
        (28, ["query=\"aaaa\"", "domain=\"web\"", "result=\"no records\"", "endpoints=0"]),
    ] {
        client.send(&question(kind)).await.unwrap();
        let mut buffer = [0; 512];
        let answer = client.recv(&mut buffer);
        tokio::time::timeout(Duration::from_secs(10), answer).await.expect("no answer").unwrap();
        let said = log.take();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(expected.iter().all(|field| said[0].contains(field)), "{said:?}");
    }
}
