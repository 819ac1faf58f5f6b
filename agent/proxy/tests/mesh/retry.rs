//! Retries and outlier ejection when the first endpoint, waypoint or gateway fails, over real sockets to scripted peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{GatewayAddress, GatewayDestination, NetworkAddress, Protocol, Service, Workload};
use isthmus_proxy::{Config, Retry};

use crate::access_log::AccessLog;
use crate::scripted_peer::{Failure, ScriptedPeer};
use crate::test_mesh::*;

const BAD: u8 = 2;
const GOOD: u8 = 3;

fn config() -> Config {
    Config {
        dial_deadline: Duration::from_millis(500),
        tls_deadline: Duration::from_millis(500),
        ..Config::default()
    }
}

/// A service with two endpoints, of which the bad one is nearly always chosen first.
struct BadAndGood {
    network: TestMesh,
    log: AccessLog,
    sleep: Workload,
    good: Workload,
    service: Service,
}

impl BadAndGood {
    fn new(config: Config) -> Self {
        let network = TestMesh::with_config("east", &Arc::new(AddressRange::claim()), config);
        let sleep = network.workload("sleep", 1);
        let bad = Workload { capacity: u32::MAX, ..serving(network.workload("bad", BAD)) };
        let good = serving(network.workload("good", GOOD));
        let service = network.service(10, &[]);
        network.push(&[sleep.clone(), bad, good.clone()], std::slice::from_ref(&service), &[]);
        Self { network, log: AccessLog::capture(), sleep, good, service }
    }

    async fn bad(&self, does: Failure) -> ScriptedPeer {
        let bad = self.network.workload("bad", BAD);
        ScriptedPeer::start(&self.network, bad.addresses[0], &bad.identity(), does).await
    }

    fn client(&self) -> Pod {
        self.network.client(&self.sleep, SocketAddr::new(self.network.block.ip(10), SERVICE_PORT))
    }

    fn bad_uid() -> &'static str {
        "east//Pod/sample/bad"
    }

    fn at(&self, last: u8) -> SocketAddr {
        SocketAddr::new(self.network.block.ip(last), HBONE)
    }
}

#[track_caller]
fn has(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}

#[tokio::test]
async fn a_failed_attempt_is_retried_elsewhere_and_its_endpoint_ejected() {
    for (does, cause, connections) in [
        (Failure::ConnectRefused, "refused", 0),
        (Failure::ConnectTimeout, "connect timeout", 0),
        (Failure::TlsTimeout, "tls timeout", 1),
        (Failure::TlsReset, "closed in tls handshake", 1),
        (Failure::Status("503"), "status 503", 1),
        // The pool tries other tunnels to the same peer first: the peer may be restarting.
        (Failure::RefusedStream, "refused stream", 3),
        (Failure::GoAway, "going away", 3),
    ] {
        let pair = BadAndGood::new(config());
        let (network, peer) = (&pair.network, pair.bad(does).await);
        let (app, _server) = (network.echo(&pair.good).await, network.server(&pair.good));
        let client = pair.client();
        let answer = exchange(&mut client.dial().await, b"hello").await;
        assert_eq!(answer.unwrap_or_default(), b"hello", "{does:?}: {}", pair.log.next().await);
        let tried =
            format!("tried=\"{} {cause}, endpoint {} ejected for 1s\"", pair.at(BAD), BadAndGood::bad_uid());
        let line = pair.log.next().await;
        has(&line, &["message=connection complete", "dst.workload=\"good\"", "tries=2", &tried]);
        assert!(!line.contains("error=") && !line.contains("gave_up="), "{line}");
        // The next connections avoid it.
        for _ in 0..3 {
            assert_eq!(exchange(&mut client.dial().await, b"again").await.unwrap(), b"again");
            let line = pair.log.next().await;
            assert!(!line.contains("tries="), "{does:?}: {line}");
        }
        assert_eq!((peer.accepted(), app.accepted()), (connections, 4), "{does:?}");
        let label = format!("cause=\"{cause}\"");
        network.metric_becomes(1, "isthmus_connect_retries_total", &[&label]).await;
        assert_eq!(network.metric("isthmus_ejections_total", &["role=\"endpoint\""]), 1);
        let labels = ["reporter=\"source\"", "destination_workload=\"good\"", "response_flags=\"-\""];
        network.metric_becomes(4, "istio_tcp_connections_closed_total", &labels).await;
        let bad = ["reporter=\"source\"", "destination_workload=\"bad\""];
        assert_eq!(network.metric("istio_tcp_connections_opened_total", &bad), 0, "counted where it went");
    }
}

#[tokio::test]
async fn a_failure_that_the_peer_decided_is_not_retried() {
    for (does, error) in [
        (Failure::Status("400"), "http status: 400"),
        (Failure::Status("401"), "http status: 401"),
        (Failure::Status("502"), "http status: 502"),
        (Failure::WrongIdentity, "tls handshake error"),
        (Failure::Cancel, "the stream was reset before an answer"),
    ] {
        let pair = BadAndGood::new(config());
        let (network, _peer) = (&pair.network, pair.bad(does).await);
        let (app, _server) = (network.echo(&pair.good).await, network.server(&pair.good));
        let client = pair.client();
        assert!(closed(&mut client.dial().await).await.is_err(), "{does:?}");
        let line = pair.log.next().await;
        has(&line, &["dst.workload=\"bad\"", error, "gave_up=\"not retryable\""]);
        assert!(!line.contains("tried="), "{line}");
        assert_eq!(app.accepted(), 0, "{does:?}");
        network.metric_becomes(1, "isthmus_connect_gave_up_total", &["why=\"not retryable\""]).await;
        assert!(!network.registry.encode().unwrap().contains("isthmus_ejections_total{"), "{does:?}");
    }
}

#[tokio::test]
async fn a_tunnel_is_never_retried_in_plaintext() {
    let pair = BadAndGood::new(config());
    let (network, _peer) = (&pair.network, pair.bad(Failure::ConnectRefused).await);
    let plain = Workload { protocol: Protocol::Tcp, ..pair.good.clone() };
    network.push(std::slice::from_ref(&plain), &[], &[]);
    let app = network.echo(&plain).await;
    let client = pair.client();
    assert!(closed(&mut client.dial().await).await.is_err());
    let line = pair.log.next().await;
    has(&line, &["dst.workload=\"bad\"", "connect to", "refused", "gave_up=\"no other endpoint\""]);
    assert_eq!(app.accepted(), 0);
}

#[tokio::test]
async fn plaintext_connections_are_retried_too() {
    let pair = BadAndGood::new(config());
    let network = &pair.network;
    let plain = |workload: Workload| Workload { protocol: Protocol::Tcp, ..workload };
    let bad = Workload { capacity: u32::MAX, ..serving(network.workload("bad", BAD)) };
    network.push(&[plain(bad), plain(pair.good.clone())], &[], &[]);
    let app = network.echo(&pair.good).await;
    let client = pair.client();
    assert_eq!(exchange(&mut client.dial().await, b"hello").await.unwrap(), b"hello");
    let refused = SocketAddr::new(network.block.ip(BAD), APP_PORT);
    has(&pair.log.next().await, &["tries=2", &format!("tried=\"{refused} refused, endpoint")]);
    assert_eq!(app.accepted(), 1);
}

#[tokio::test]
async fn a_waypoint_is_retried_at_another_waypoint_only() {
    let pair = BadAndGood::new(config());
    let network = &pair.network;
    // The endpoint itself would accept.
    let (app, _server) = (network.echo(&pair.good).await, network.server(&pair.good));
    let waypoint = Service {
        name: "waypoint".into(),
        hostname: "waypoint.sample.svc.cluster.local".into(),
        vips: vec![NetworkAddress { network: network.name.clone(), address: network.block.ip(20) }],
        ports: [(HBONE, HBONE)].into(),
        ..network.service(20, &[])
    };
    let behind = |name: &str, last: u8| {
        let mut workload = network.workload(name, last);
        workload.services.insert(waypoint.key(), [(HBONE, HBONE)].into());
        workload
    };
    let reference =
        GatewayAddress { destination: GatewayDestination::Hostname(waypoint.key()), hbone_mtls_port: HBONE };
    let service = Service { waypoint: Some(reference), ..pair.service.clone() };
    let dead = Workload { capacity: u32::MAX, ..behind("wp-dead", 21) };
    network.push(std::slice::from_ref(&dead), &[service, waypoint.clone()], &[]);
    let client = pair.client();
    for _ in 0..2 {
        assert!(closed(&mut client.dial().await).await.is_err());
        // The only waypoint is never ejected.
        let line = pair.log.next().await;
        has(
            &line,
            &[
                "dst.workload=\"wp-dead\"",
                "refused, waypoint",
                "not ejected",
                "gave_up=\"no other endpoint\"",
            ],
        );
    }
    assert_eq!(app.accepted(), 0);
    // Another one answers 503, which is about the endpoints behind it: it is not ejected.
    let live = behind("wp-live", 22);
    network.push(std::slice::from_ref(&live), &[], &[]);
    let peer =
        ScriptedPeer::start(network, live.addresses[0], &live.identity(), Failure::Status("503")).await;
    assert!(closed(&mut client.dial().await).await.is_err());
    let line = pair.log.next().await;
    let tried = format!(
        "tried=\"{} refused, waypoint {} ejected for 1s; {} status 503\"",
        pair.at(21),
        dead.uid,
        pair.at(22)
    );
    has(&line, &["dst.workload=\"wp-live\"", "http status: 503", &tried, "gave_up=\"no other endpoint\""]);
    assert_eq!((peer.accepted(), app.accepted()), (1, 0));
}

#[tokio::test]
async fn when_all_endpoints_refuse_half_of_them_are_ejected() {
    let pair = BadAndGood::new(config());
    let client = pair.client();
    // Neither listens.
    assert!(closed(&mut client.dial().await).await.is_err());
    let line = pair.log.next().await;
    has(
        &line,
        &["tries=2", "ejected for 1s", "not ejected: half of 2 at most", "gave_up=\"no other endpoint\""],
    );
    has(&line, &["error=", "refused"]);
    // The endpoint that could not be ejected is left.
    assert!(closed(&mut client.dial().await).await.is_err());
    let line = pair.log.next().await;
    has(&line, &["dst.workload=\"good\"", "not ejected", "gave_up=\"no other endpoint\""]);
    assert!(!line.contains("tries=2"), "{line}");
}

#[tokio::test]
async fn attempts_are_limited() {
    let retry = Retry { tries: 2, ..Retry::default() };
    let pair = BadAndGood::new(Config { retry, ..config() });
    for last in 30..34 {
        let other = serving(pair.network.workload(&format!("bad-{last}"), last));
        pair.network.push(&[Workload { capacity: u32::MAX, ..other }], &[], &[]);
    }
    let client = pair.client();
    assert!(closed(&mut client.dial().await).await.is_err());
    has(&pair.log.next().await, &["tries=2", "gave_up=\"tries used up\""]);
}

/// A service with endpoints here and behind two gateways.
struct Far {
    pair: BadAndGood,
    gateways: [Workload; 2],
}

impl Far {
    /// `near`: capacity of the local endpoint, if there shall be one.
    fn new(near: Option<u32>) -> Self {
        let pair = BadAndGood::new(config());
        let network = &pair.network;
        let identities = [pair.good.identity()];
        let gateway_service = Service {
            name: "eastwest".into(),
            hostname: "eastwest.istio-system.svc.cluster.local".into(),
            vips: vec![NetworkAddress { network: "west".into(), address: network.block.ip(200) }],
            ports: [(HBONE, HBONE)].into(),
            ..network.service(200, &[])
        };
        let gateway = |name: &str, last: u8, capacity| {
            let mut workload = network.workload(name, last);
            workload.network = "west".into();
            workload.capacity = capacity;
            workload.protocol = Protocol::Tcp;
            workload.services.insert(gateway_service.key(), [(HBONE, HBONE)].into());
            workload
        };
        let reference = GatewayAddress {
            destination: GatewayDestination::Hostname(gateway_service.key()),
            hbone_mtls_port: HBONE,
        };
        let split = serving(Workload {
            uid: "west/SplitHorizonWorkload/eastwest/helloworld".into(),
            addresses: Vec::new(),
            network: "west".into(),
            network_gateway: Some(reference),
            capacity: 1_000_000_000,
            ..network.workload("bad", BAD)
        });
        let gateways = [gateway("gw-1", 201, u32::MAX), gateway("gw-2", 202, 1)];
        let near = near.map(|capacity| Workload { capacity, ..pair.good.clone() });
        network.state.apply(isthmus_state::Batch {
            remove_addresses: vec![BadAndGood::bad_uid().to_owned(), pair.good.uid.to_string()],
            ..isthmus_state::Batch::default()
        });
        let workloads = [vec![split], gateways.to_vec(), near.into_iter().collect()].concat();
        network.push(&workloads, &[network.service(10, &identities), gateway_service], &[]);
        Self { pair, gateways }
    }

    async fn gateway(&self, at: usize, does: Failure) -> ScriptedPeer {
        let workload = &self.gateways[at];
        ScriptedPeer::start(&self.pair.network, workload.addresses[0], &workload.identity(), does).await
    }
}

#[tokio::test]
async fn a_gateway_that_refuses_is_ejected_and_one_that_answers_503_is_not() {
    let far = Far::new(None);
    let (_dead, live) =
        (far.gateway(0, Failure::ConnectRefused).await, far.gateway(1, Failure::Status("503")).await);
    let client = far.pair.client();
    assert!(closed(&mut client.dial().await).await.is_err());
    let line = far.pair.log.next().await;
    // The other gateway is tried twice: it chooses an endpoint anew each time.
    let (dead, uid) = (far.pair.at(201), &far.gateways[0].uid);
    let behind = format!(
        "{} status 503, endpoint west/SplitHorizonWorkload/eastwest/helloworld not ejected: half of 1 at most",
        far.pair.at(202)
    );
    has(
        &line,
        &[
            "dst.workload=\"gw-2\"",
            "tries=3",
            &format!("tried=\"{dead} refused, gateway {uid} ejected for 1s; {behind}; {behind}\""),
            "gave_up=\"tries used up\"",
        ],
    );
    assert_eq!(live.accepted(), 1, "one tunnel");
    assert_eq!(far.pair.network.metric("isthmus_ejections_total", &["role=\"gateway\""]), 1);
}

#[tokio::test]
async fn a_local_endpoint_replaces_a_remote_one_behind_failing_gateways() {
    for does in [Failure::ConnectRefused, Failure::Status("503")] {
        let far = Far::new(Some(1));
        let network = &far.pair.network;
        let _peers = (far.gateway(0, does).await, far.gateway(1, does).await);
        let (app, _server) = (network.echo(&far.pair.good).await, network.server(&far.pair.good));
        let client = far.pair.client();
        assert_eq!(exchange(&mut client.dial().await, b"near").await.unwrap(), b"near", "{does:?}");
        let line = far.pair.log.next().await;
        has(&line, &["dst.workload=\"good\"", "tries=2", "tried="]);
        assert_eq!(app.accepted(), 1);
    }
}
