//! A pod's end, with a connection that does not end by itself.

use isthmus_identity::fake::FakeSigner;
use isthmus_identity::{Config, Manager};
use isthmus_model::PodRef;
use isthmus_proxy::BoundListener;
use isthmus_rt::drain;
use isthmus_state::{Batch, Options, State};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// One pod on loopback, known to the mesh, whose outbound connections all go to `app`.
async fn pods(uid: &PodUid, app: SocketAddr, watch: Watch) -> (Arc<Pods>, SocketAddr) {
    isthmus_identity::install_crypto_provider();
    let tasks = Tasks::new("test");
    let (state, registry) = (State::new(Options::default()), Registry::default());
    let pod = isthmus_model::Workload {
        uid: "c//Pod/ns/a".into(),
        name: "a".into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
        ..isthmus_model::Workload::default()
    };
    state.apply(Batch { upsert_workloads: vec![pod], ..Batch::default() });
    let proxy_context = Arc::new(ProxyContext {
        state,
        certs: Arc::new(Manager::new(Arc::new(FakeSigner::new()), Config::default(), &tasks)),
        host_resolver: Arc::new(isthmus_proxy::NoHostResolver),
        network: "".into(),
        cluster_id: "c".into(),
        settings: isthmus_hbone::Settings::default(),
        config: isthmus_proxy::Config::default(),
        metrics: isthmus_proxy::Metrics::register(&registry),
        threads: isthmus_rt::threads::Threads::current(),
        scheduler: isthmus_rt::fair::FairScheduler::default(),
    });
    let bind = async || BoundListener::from_tokio(TcpListener::bind("127.0.0.1:0").await.unwrap(), false);
    let (outbound, inbound, inbound_plaintext) = (bind().await, bind().await, bind().await);
    let address = outbound.local_addr().unwrap();
    let outbound = outbound.with_destination(app);
    let listeners = Listeners { outbound, inbound, inbound_plaintext };
    let info =
        PodRef { uid: uid.clone(), name: "a".into(), namespace: "ns".into(), service_account: "sa".into() };
    let proxy = PodProxy::start(Arc::clone(&proxy_context), info, listeners, Sockets::host(), watch);
    let pods = Arc::new(Pods {
        proxy_context,
        sockets: SocketConfig {
            mark: 0,
            reuse_port: false,
            keepalive: None,
            ipv6: false,
            original_source: None,
            local_congestion: isthmus_sys::socket::LocalCongestion::Auto,
        },
        dns: None,
        drain: Mutex::default(),
        deadline: Duration::from_secs(3600),
        table: PodList::default(),
        running: Mutex::new(HashMap::from([(uid.clone(), PodDataPlane { proxy, dns: None })])),
        draining: Tasks::new("test"),
    });
    (pods, address)
}

#[tokio::test]
async fn removing_a_pod_does_not_wait_for_its_connections() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_drain, watch) = drain::channel();
    let uid = PodUid::from("u1");
    let (pods, address) = pods(&uid, app.local_addr().unwrap(), watch).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    let (mut served, _) = app.accept().await.unwrap();
    let stopped = tokio::time::timeout(PATIENCE, pods.stop(&uid, StopMode::Drain)).await;
    assert!(stopped.is_ok(), "the answer waited for the open connection");
    let mut byte = [0];
    client.write_all(b"x").await.unwrap();
    served.read_exact(&mut byte).await.unwrap();
    assert_eq!(byte, *b"x", "what is open goes on");
    let closed = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("nothing new is taken");
}
