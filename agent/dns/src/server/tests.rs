use std::net::{IpAddr, Ipv4Addr};

use isthmus_kit::wait::eventually;
use isthmus_model::{NetworkAddress, PodRef, Service, Visibility, Workload};
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::fair::FairScheduler;
use isthmus_state::{Batch, Options};
use tokio::io::AsyncReadExt;

use super::*;
use crate::query::tests::{opt, plain, query};

const SOON: Duration = Duration::from_secs(10);

fn loopback() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn pod() -> PodRef {
    PodRef { uid: "u".into(), name: "a".into(), namespace: "ns".into(), service_account: "sa".into() }
}

fn workload() -> Workload {
    Workload {
        uid: "c//Pod/ns/a".into(),
        name: "a".into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
        canonical_name: "app".into(),
        canonical_revision: "v1".into(),
        ..Workload::default()
    }
}

fn web() -> Service {
    let vip = |text: &str| NetworkAddress { network: "".into(), address: text.parse().unwrap() };
    Service {
        name: "web".into(),
        namespace: "ns".into(),
        hostname: "web.ns.svc.cluster.local".into(),
        vips: vec![vip("10.96.0.1"), vip("fd96::1")],
        cidr_vips: vec![],
        ports: [(80, 8080)].into(),
        subject_alt_names: vec![],
        waypoint: None,
        weighted_waypoints: vec![],
        load_balancer: None,
        ip_families: None,
        canonical: true,
        visibility: Visibility::Public,
    }
}

/// A proxy on loopback with everything around it.
struct World {
    state: State,
    proxy: DnsProxy,
    drain: Option<Drain>,
    registry: isthmus_rt::metrics::Registry,
    /// What its tasks are charged to.
    share: Arc<Share>,
}

impl World {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let state = State::new(Options::default());
        let batch =
            Batch { upsert_workloads: vec![workload()], upsert_services: vec![web()], ..Batch::default() };
        state.apply(batch);
        Self::with_state(state, change)
    }

    fn with_state(state: State, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { port: 0, ..Config::default() };
        change(&mut config);
        let registry = isthmus_rt::metrics::Registry::default();
        let (drain, watch) = drain::channel();
        let sockets = Sockets::host().with_ipv6(false);
        let metrics = Metrics::register(&registry);
        let share = FairScheduler::default().share();
        let charged = Arc::clone(&share);
        let proxy = DnsProxy::start(state.clone(), pod(), config, &sockets, &watch, metrics, share).unwrap();
        Self { state, proxy, drain: Some(drain), registry, share: charged }
    }

    async fn udp(&self, message: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind(loopback()).await.unwrap();
        socket.send_to(message, self.proxy.udp_addresses()[0]).await.unwrap();
        let mut answer = vec![0; MAX_DATAGRAM];
        let (length, from) = soon(socket.recv_from(&mut answer)).await.unwrap();
        assert_eq!(from, self.proxy.udp_addresses()[0]);
        answer.truncate(length);
        answer
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.proxy.tcp_addresses()[0]).await.unwrap()
    }

    fn metric(&self, name: &str, labels: &str) -> Option<String> {
        let text = self.registry.encode().unwrap();
        let start = format!("{name}{{{labels}}} ");
        text.lines().find_map(|line| line.strip_prefix(&start)).map(str::to_owned)
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it takes too long")
}

async fn ask(stream: &mut TcpStream, message: &[u8]) -> Vec<u8> {
    relay::write(stream, message).await.unwrap();
    soon(relay::read(stream)).await.unwrap().unwrap()
}

/// A DNS server that expects these exact bytes and answers with those.
async fn udp_server(script: Vec<(Vec<u8>, Vec<u8>)>) -> (SocketAddr, Tasks) {
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    let (address, tasks) = (socket.local_addr().unwrap(), Tasks::new("udp server"));
    tasks.spawn("server", async move {
        let mut buffer = vec![0; MAX_DATAGRAM];
        for (expected, answer) in script {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            if buffer[..length] == expected {
                // Noise that must not be taken for the answer: of another id, and no response at all.
                let mut other = answer.clone();
                other[0] ^= 1;
                socket.send_to(&other, client).await.unwrap();
                socket.send_to(&expected, client).await.unwrap();
                socket.send_to(&answer, client).await.unwrap();
            }
        }
    });
    (address, tasks)
}

async fn tcp_server(script: Vec<(Vec<u8>, Vec<u8>)>) -> (SocketAddr, Tasks) {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let (address, tasks) = (listener.local_addr().unwrap(), Tasks::new("tcp server"));
    tasks.spawn("server", async move {
        for (expected, answer) in script {
            let (mut stream, _) = listener.accept().await.unwrap();
            let got = relay::read(&mut stream).await.unwrap().unwrap();
            if got == expected {
                relay::write(&mut stream, &answer).await.unwrap();
            }
        }
    });
    (address, tasks)
}

/// Queries that are not ours, with answers that hold whatever an answer may hold.
fn foreign() -> Vec<(Vec<u8>, Vec<u8>)> {
    let cookie = [0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
    let queries = [
        plain("example.com", 1),
        plain("example.com", 65_280),
        plain("other.ns.svc.cluster.local", 16),
        query("example.com", 28, 1, [0, 0, 1], &opt(4096)),
        query("EXAMPLE.com", 1, 1, [0, 0, 1], &cookie),
        query("web", 1, 3, [0; 3], &[]),
        [&plain("example.com", 1)[..12], &[1, 0xff, 0, 0, 1, 0, 1, 9, 9, 9]].concat(),
    ];
    let answer = |(n, query): (usize, Vec<u8>)| {
        let mut answer = query.clone();
        answer[2] = 0x87;
        answer[3] = 0xa3;
        answer.extend((0..200 * (n + 1)).map(|at| u8::try_from(at % 251).unwrap()));
        (query, answer)
    };
    queries.into_iter().enumerate().map(answer).collect()
}

#[tokio::test]
async fn mesh_names_are_answered_over_udp_and_tcp() {
    let world = World::new(|_| {});
    let message = plain("web", 1);
    let address = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 1];
    let want = [&[0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..], &message[12..], &address].concat();
    assert_eq!(world.udp(&message).await, want);
    let mut stream = world.tcp().await;
    for _ in 0..3 {
        assert_eq!(ask(&mut stream, &message).await, want);
    }
    let labels = |transport: &str| {
        format!(
            "request_query_type=\"a\",request_protocol=\"{transport}\",source_canonical_service=\"app\",\
             source_canonical_revision=\"v1\""
        )
    };
    assert_eq!(world.metric("istio_dns_requests_total", &labels("udp")).as_deref(), Some("1"));
    assert_eq!(world.metric("istio_dns_requests_total", &labels("tcp")).as_deref(), Some("3"));
    assert_eq!(world.metric("istio_dns_upstream_requests_total", &labels("udp")), None);
}

#[tokio::test]
async fn queries_are_charged_to_the_pods_share_over_both_transports() {
    let world = World::new(|_| {});
    let before = world.share.charged();
    world.udp(&plain("web", 1)).await;
    let after_udp = world.share.charged();
    ask(&mut world.tcp().await, &plain("web", 1)).await;
    assert!(before < after_udp && after_udp < world.share.charged(), "{before:?} {after_udp:?}");
}

#[tokio::test]
async fn other_queries_are_forwarded_unchanged_over_udp() {
    let (server, _tasks) = udp_server(foreign()).await;
    let world = World::new(|config| config.upstream = vec![server]);
    for (query, answer) in foreign() {
        assert_eq!(world.udp(&query).await, answer);
    }
    let labels = "request_query_type=\"a\",request_protocol=\"udp\",source_canonical_service=\"app\",\
                  source_canonical_revision=\"v1\"";
    assert_eq!(world.metric("istio_dns_upstream_requests_total", labels).as_deref(), Some("4"));
    assert_eq!(
        world.metric("istio_dns_upstream_request_duration_seconds_count", labels).as_deref(),
        Some("4")
    );
}

#[tokio::test]
async fn other_queries_are_forwarded_unchanged_over_tcp() {
    let mut script = foreign();
    script[0].1.resize(60_000, 7);
    let (server, _tasks) = tcp_server(script.clone()).await;
    let world = World::new(|config| config.upstream = vec![server]);
    let mut stream = world.tcp().await;
    for (query, answer) in script {
        assert_eq!(ask(&mut stream, &query).await, answer);
    }
}

#[tokio::test]
async fn the_next_server_is_tried_and_without_servers_the_query_fails() {
    let (server, _tasks) = tcp_server(foreign()).await;
    let dead = {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        listener.local_addr().unwrap()
    };
    let world = World::new(|config| config.upstream = vec![dead, server]);
    let (query, answer) = foreign().remove(0);
    assert_eq!(ask(&mut world.tcp().await, &query).await, answer);
    let failed = [&[0xab, 0xcd, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0][..], &query[12..]].concat();
    for upstream in [vec![], vec![dead]] {
        let world = World::new(|config| config.upstream = upstream);
        assert_eq!(world.udp(&query).await, failed);
        assert_eq!(ask(&mut world.tcp().await, &query).await, failed);
        let labels = "request_query_type=\"a\",request_protocol=\"udp\",source_canonical_service=\"app\",\
                      source_canonical_revision=\"v1\"";
        assert_eq!(world.metric("istio_dns_upstream_failures_total", labels).as_deref(), Some("1"));
    }
}

#[tokio::test]
async fn a_silent_server_fails_its_query_and_delays_no_other() {
    let silent = UdpSocket::bind(loopback()).await.unwrap();
    let world = World::new(|config| {
        config.upstream = vec![silent.local_addr().unwrap()];
        config.timeout = Duration::from_millis(300);
    });
    let (slow, mesh) = (plain("example.com", 1), plain("web", 1));
    let client = UdpSocket::bind(loopback()).await.unwrap();
    client.connect(world.proxy.udp_addresses()[0]).await.unwrap();
    client.send(&slow).await.unwrap();
    // Now one waits: the server has it.
    let mut buffer = vec![0; 512];
    let (length, _) = soon(silent.recv_from(&mut buffer)).await.unwrap();
    assert_eq!(buffer[..length], slow);
    assert_eq!(world.udp(&mesh).await[3], 0x80, "mesh names need no server");
    let length = soon(client.recv(&mut buffer)).await.unwrap();
    assert_eq!((buffer[3], length), (0x82, slow.len()), "the first one has failed in the end");
}

/// The oldest gives way without an answer, and what comes later is asked.
#[tokio::test]
async fn queries_to_a_silent_server_take_no_room_from_later_ones() {
    let server = UdpSocket::bind(loopback()).await.unwrap();
    let world = World::new(|config| {
        config.upstream = vec![server.local_addr().unwrap()];
        config.max_waiting = 16;
    });
    let client = UdpSocket::bind(loopback()).await.unwrap();
    client.connect(world.proxy.udp_addresses()[0]).await.unwrap();
    let name = |n: usize| plain(&format!("name-{n}.example.com"), 1);
    let mut buffer = vec![0; 512];
    for n in 0..100 {
        client.send(&name(n)).await.unwrap();
        let (length, _) = soon(server.recv_from(&mut buffer)).await.unwrap();
        assert_eq!(buffer[..length], name(n), "every query is asked");
        assert!(world.proxy.active() <= 17, "{}", world.proxy.active());
    }
    // It answers the next one, which is the first thing that the client hears.
    let next = plain("answered.example.com", 1);
    client.send(&next).await.unwrap();
    let (length, from) = soon(server.recv_from(&mut buffer)).await.unwrap();
    buffer[2] |= 0x80;
    server.send_to(&buffer[..length], from).await.unwrap();
    let length = soon(client.recv(&mut buffer)).await.unwrap();
    assert_eq!(buffer[3..length], next[3..]);
}

#[tokio::test]
async fn idle_tcp_clients_make_room_for_the_next() {
    let world = World::new(|_| {});
    let mut idle = Vec::new();
    for _ in 0..70 {
        idle.push(world.tcp().await);
    }
    let started = std::time::Instant::now();
    assert_eq!(ask(&mut world.tcp().await, &plain("web", 1)).await[3], 0x80);
    assert!(started.elapsed() < TCP_IDLE, "it did not wait for the others to time out");
    assert_eq!(soon(idle[0].read(&mut [0; 1])).await.unwrap_or_default(), 0, "the longest idle is closed");
}

#[tokio::test]
async fn a_name_of_the_mesh_exists_whatever_type_is_asked() {
    let denial = |query: &[u8]| {
        let mut answer = query.to_vec();
        (answer[2], answer[3]) = (0x87, 0xa3);
        answer
    };
    let texts = ["web", "web.ns", "web.ns.svc.cluster.local", "WEB.ns.svc.cluster.local"];
    let ours: Vec<_> = texts.iter().map(|name| plain(name, 15)).collect();
    let unknown = plain("nowhere.example.com", 15);
    let real = plain("web.ns.svc.cluster.local", 33);
    let mut found = real.clone();
    (found[2], found[3]) = (0x87, 0xa0);
    found.extend([9; 30]);
    let script: Vec<_> = ours.iter().chain([&unknown]).map(|query| (query.clone(), denial(query))).collect();
    let script = [script, vec![(real.clone(), found.clone())]].concat();
    let (server, _tasks) = udp_server(script).await;
    let world = World::new(|config| config.upstream = vec![server]);
    for query in &ours {
        let answer = world.udp(query).await;
        assert_eq!((answer[3] & 0x0f, &answer[6..8]), (0, &[0, 0][..]), "NODATA");
        assert_eq!(answer[12..], query[12..]);
    }
    assert_eq!(world.udp(&unknown).await, denial(&unknown), "a name of others may be denied");
    assert_eq!(world.udp(&real).await, found, "what the server has is the answer");
    // The records that could lead around the mesh are not asked for at all.
    let https = world.udp(&plain("web", 65)).await;
    assert_eq!((https[3] & 0x0f, &https[6..8]), (0, &[0, 0][..]));
}

#[tokio::test]
async fn a_query_waits_for_its_pods_workload_to_be_known() {
    let world = World::with_state(State::new(Options::default()), |_| {});
    let mut stream = world.tcp().await;
    let message = plain("web", 1);
    relay::write(&mut stream, &message).await.unwrap();
    // The proxy has read it once it counts it.
    let labels = "request_query_type=\"a\",request_protocol=\"tcp\",source_canonical_service=\"unknown\",\
                  source_canonical_revision=\"unknown\"";
    eventually(
        || world.metric("istio_dns_requests_total", labels).is_some(),
        || "the query is not counted".to_owned(),
    )
    .await;
    let batch =
        Batch { upsert_workloads: vec![workload()], upsert_services: vec![web()], ..Batch::default() };
    world.state.apply(batch);
    let answer = soon(relay::read(&mut stream)).await.unwrap().unwrap();
    assert_eq!(answer[answer.len() - 4..], [10, 96, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn queries_of_an_unknown_pod_fail_after_a_timeout() {
    let state = State::new(Options::default());
    let config = Config::default();
    let registry = isthmus_rt::metrics::Registry::default();
    let handler = Handler::new(state, pod(), config, &Sockets::host(), Metrics::register(&registry));
    let message = plain("web", 1);
    assert!(matches!(handler.decide(&message, Transport::Udp), Outcome::Wait));
    let start = tokio::time::Instant::now();
    let answer = handler.finish(&message, Transport::Udp, None).await.unwrap();
    assert_eq!(answer[3], 0x82);
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn malformed_messages_get_formerr_or_no_answer() {
    let world = World::new(|_| {});
    let mut response = plain("web", 1);
    response[2] |= 0x80;
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    socket.connect(world.proxy.udp_addresses()[0]).await.unwrap();
    socket.send(&[1, 2, 3]).await.unwrap();
    socket.send(&response).await.unwrap();
    let mut buffer = vec![0; 512];
    let length = soon(socket.recv(&mut buffer)).await.unwrap();
    let want = [&[0xab, 0xcd, 0x81, 0x81, 0, 1, 0, 0, 0, 0, 0, 0][..], &response[12..]].concat();
    assert_eq!(buffer[..length], want);
    // A TCP client that sends a runt is cut off.
    let mut stream = world.tcp().await;
    relay::write(&mut stream, &[1, 2, 3]).await.unwrap();
    assert_eq!(soon(stream.read(&mut buffer)).await.unwrap(), 0);
}

#[tokio::test]
async fn a_draining_proxy_finishes_its_queries_and_accepts_no_more() {
    let upstream = UdpSocket::bind(loopback()).await.unwrap();
    let mut world = World::new(|config| config.upstream = vec![upstream.local_addr().unwrap()]);
    let message = plain("example.com", 1);
    let client = UdpSocket::bind(loopback()).await.unwrap();
    client.connect(world.proxy.udp_addresses()[0]).await.unwrap();
    client.send(&message).await.unwrap();
    let mut buffer = vec![0; 512];
    let (length, asker) = soon(upstream.recv_from(&mut buffer)).await.unwrap();
    let drain = world.drain.take().unwrap();
    let tcp = world.proxy.tcp_addresses()[0];
    let answered = async {
        eventually(|| !world.proxy.is_serving(), || "the proxy still serves".to_owned()).await;
        assert_eq!(world.proxy.active(), 1);
        buffer[2] |= 0x80;
        upstream.send_to(&buffer[..length], asker).await.unwrap();
        let mut answer = vec![0; 512];
        let got = soon(client.recv(&mut answer)).await.unwrap();
        assert_eq!(answer[..got], buffer[..length]);
    };
    let (outcome, ()) = tokio::join!(drain.shutdown(SOON), answered);
    assert_eq!(outcome, drain::Outcome::Drained);
    assert!(TcpStream::connect(tcp).await.is_err());
}

/// What is asked while one agent takes over from another is answered, whichever of their sockets the kernel chose.
#[tokio::test]
async fn no_query_is_lost_while_another_agent_takes_over() {
    let upstream = UdpSocket::bind(loopback()).await.unwrap();
    let sockets = Sockets::host().with_ipv6(false).with_reuse_port(true);
    let state = State::new(Options::default());
    state.apply(Batch {
        upsert_workloads: vec![workload()],
        upsert_services: vec![web()],
        ..Batch::default()
    });
    let proxy = |port, watch: &Watch| {
        let config = Config { port, upstream: vec![upstream.local_addr().unwrap()], ..Config::default() };
        let metrics = Metrics::register(&isthmus_rt::metrics::Registry::default());
        let share = FairScheduler::default().share();
        DnsProxy::start(state.clone(), pod(), config, &sockets, watch, metrics, share).unwrap()
    };
    let ((ending, watch), (_drain, other)) = (drain::channel(), drain::channel());
    let free = UdpSocket::bind(loopback()).await.unwrap().local_addr().unwrap().port();
    let old = proxy(free, &watch);
    drop(watch);
    let (udp, tcp) = (old.udp_addresses()[0], old.tcp_addresses()[0]);
    // This one waits for its server and keeps the old socket open all the while.
    let waiting = UdpSocket::bind(loopback()).await.unwrap();
    waiting.send_to(&plain("example.com", 1), udp).await.unwrap();
    soon(upstream.recv_from(&mut [0; 512])).await.unwrap();
    // The old agent has not run since, so these are in its queues when its drain begins.
    let asked = |client: &std::net::UdpSocket| client.send_to(&plain("web", 1), udp).unwrap();
    let clients: Vec<_> = (0..50).map(|_| std::net::UdpSocket::bind(loopback()).unwrap()).collect();
    clients.iter().for_each(|client| assert!(asked(client) > 0));
    let mut streams: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(tcp).unwrap()).collect();
    let new = proxy(free, &other);
    let mut end = Box::pin(ending.shutdown(SOON));
    let running = eventually(|| !old.is_serving(), || "the old proxy still serves".to_owned());
    tokio::select! {
        _ = &mut end => panic!("a query still waits"),
        () = running => {}
    }
    let more: Vec<_> = (0..50).map(|_| std::net::UdpSocket::bind(loopback()).unwrap()).collect();
    more.iter().for_each(|client| assert!(asked(client) > 0));
    for client in clients.into_iter().chain(more) {
        client.set_nonblocking(true).unwrap();
        let client = UdpSocket::from_std(client).unwrap();
        assert!(soon(client.recv(&mut [0; 512])).await.unwrap() > 12);
    }
    for stream in streams.drain(..) {
        stream.set_nonblocking(true).unwrap();
        assert!(ask(&mut TcpStream::from_std(stream).unwrap(), &plain("web", 1)).await.len() > 12);
    }
    assert!(new.is_serving());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_disconnected() {
    let world = World::new(|config| config.max_connections = 1);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = socket.connect(world.proxy.tcp_addresses()[0]).await.unwrap();
    let message = plain("web", 1);
    // Once every buffer on the way is full nothing moves but the clock.
    let flood = async { while relay::write(&mut deaf, &message).await.is_ok() {} };
    soon(flood).await;
}

#[tokio::test]
async fn dropping_the_proxy_stops_everything() {
    let silent = UdpSocket::bind(loopback()).await.unwrap();
    let mut world = World::new(|config| config.upstream = vec![silent.local_addr().unwrap()]);
    let client = UdpSocket::bind(loopback()).await.unwrap();
    client.send_to(&plain("example.com", 1), world.proxy.udp_addresses()[0]).await.unwrap();
    let mut idle = world.tcp().await;
    soon(silent.recv_from(&mut [0; 512])).await.unwrap();
    let drain = world.drain.take().unwrap();
    drop(world);
    assert_eq!(soon(idle.read(&mut [0; 1])).await.unwrap_or_default(), 0);
    // Nothing holds the drain any more.
    assert_eq!(drain.shutdown(SOON).await, drain::Outcome::Drained);
}

#[tokio::test]
async fn one_family_failing_does_not_stop_the_other() {
    let sockets = Sockets::host();
    // Take IPv4's place on some port, and then IPv6's.
    for taken in [IpAddr::from(Ipv4Addr::LOCALHOST), "::1".parse().unwrap()] {
        let Ok(blocker) = TcpListener::bind((taken, 0)).await else {
            assert!(taken.is_ipv6(), "there is always IPv4");
            continue;
        };
        let port = blocker.local_addr().unwrap().port();
        let both = Listeners::bind(&sockets, port);
        let other: Vec<bool> = both
            .map(|both| both.tcp_addresses().iter().map(SocketAddr::is_ipv6).collect())
            .unwrap_or_default();
        let has_ipv6 = TcpListener::bind(("::1", 0)).await.is_ok();
        let want = if taken.is_ipv6() { vec![false] } else { vec![true; usize::from(has_ipv6)] };
        assert_eq!(other, want, "with {taken} taken");
        assert!(Listeners::bind(&sockets.clone().with_ipv6(false), port).is_err() == taken.is_ipv4());
    }
}

mod odd;
