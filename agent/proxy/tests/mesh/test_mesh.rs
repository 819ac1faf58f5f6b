//! A mesh on loopback: networks with state, certificates and pods. Each test uses addresses that no other test uses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::Settings;
use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::session::TlsSession;
use isthmus_identity::fake::FakeSigner;
use isthmus_identity::{CertSource, Manager, Signer, Trust};
use isthmus_kit::wait::eventually;
use isthmus_model::policy::{Match, StringMatch};
use isthmus_model::{
    Action, NamespacedHostname, NetworkAddress, NetworkId, PodRef, Policy, PolicyKey, Protocol, Scope,
    Service, SpiffeId, Workload,
};
use isthmus_proxy::{
    BoundListener, Config, HostResolver, Listeners, Metrics, NoHostResolver, PodProxy, ProxyContext,
};
use isthmus_rt::drain::{self, Drain, Watch};
use isthmus_rt::fair::FairScheduler;
use isthmus_rt::task::Tasks;
use isthmus_rt::threads::Threads;
use isthmus_state::{Batch, Options, State};
use isthmus_sys::socket::Sockets;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The HBONE port; fixed, since routes contain it.
pub(crate) const HBONE: u16 = 15008;
/// The service's port, to which clients connect.
pub(crate) const SERVICE_PORT: u16 = 5000;
/// The applications' port.
pub(crate) const APP_PORT: u16 = 8080;
pub(crate) const HOSTNAME: &str = "helloworld.sample.svc.cluster.local";

/// A range of 256 loopback addresses that no other test uses.
pub(crate) struct AddressRange {
    net: [u8; 3],
    _claim: StdListener,
}

impl AddressRange {
    pub(crate) fn claim() -> Self {
        loop {
            let net = [127, fastrand::u8(1..), fastrand::u8(..)];
            let address = Ipv4Addr::new(net[0], net[1], net[2], 255);
            if let Ok(claim) = StdListener::bind((address, HBONE)) {
                return Self { net, _claim: claim };
            }
        }
    }

    pub(crate) fn ip(&self, last: u8) -> IpAddr {
        Ipv4Addr::new(self.net[0], self.net[1], self.net[2], last).into()
    }
}

/// One network of the mesh, with an agent.
pub(crate) struct TestMesh {
    pub(crate) name: NetworkId,
    pub(crate) block: Arc<AddressRange>,
    pub(crate) state: State,
    pub(crate) ctx: Arc<ProxyContext>,
    pub(crate) registry: isthmus_rt::metrics::Registry,
    pub(crate) tasks: Tasks,
    pub(crate) certs: Manager,
    pub(crate) drain: Drain,
    pub(crate) watch: Watch,
}

impl TestMesh {
    pub(crate) fn new(name: &str, block: &Arc<AddressRange>) -> Self {
        Self::with_config(
            name,
            block,
            Config { workload_deadline: Duration::from_millis(50), ..Config::default() },
        )
    }

    pub(crate) fn with_config(name: &str, block: &Arc<AddressRange>, config: Config) -> Self {
        Self::signed_by(name, block, config, Arc::new(FakeSigner::new()), Trust::default())
    }

    pub(crate) fn with_resolver(
        name: &str,
        block: &Arc<AddressRange>,
        config: Config,
        resolver: Arc<dyn HostResolver>,
    ) -> Self {
        Self::make((name, block), config, (Arc::new(FakeSigner::new()), Trust::default()), resolver)
    }

    pub(crate) fn signed_by(
        name: &str,
        block: &Arc<AddressRange>,
        config: Config,
        signer: Arc<dyn Signer>,
        trust: Trust,
    ) -> Self {
        Self::make((name, block), config, (signer, trust), Arc::new(NoHostResolver))
    }

    /// The same mesh, whose pods are carried by these threads from now on.
    pub(crate) fn on(self, threads: &Threads) -> Self {
        let old = &self.ctx;
        let ctx = Arc::new(ProxyContext {
            state: old.state.clone(),
            certs: Arc::clone(&old.certs),
            network: old.network.clone(),
            host_resolver: Arc::clone(&old.host_resolver),
            cluster_id: old.cluster_id.clone(),
            settings: old.settings.clone(),
            config: old.config.clone(),
            metrics: Arc::clone(&old.metrics),
            scheduler: FairScheduler::new(threads),
            threads: threads.clone(),
        });
        Self { ctx, ..self }
    }

    fn make(
        (name, block): (&str, &Arc<AddressRange>),
        config: Config,
        (signer, trust): (Arc<dyn Signer>, Trust),
        resolver: Arc<dyn HostResolver>,
    ) -> Self {
        isthmus_identity::install_crypto_provider();
        let threads = Threads::current();
        let (name, tasks, registry) = (NetworkId::from(name), Tasks::new("test"), Default::default());
        let identity = isthmus_identity::Config { trust, ..isthmus_identity::Config::default() };
        let certs = Manager::new(signer, identity, &tasks);
        let state =
            State::new(Options { own_network: name.clone(), ports: config.ports, ..Options::default() });
        let ctx = Arc::new(ProxyContext {
            state: state.clone(),
            certs: Arc::new(certs.clone()),
            network: name.clone(),
            host_resolver: resolver,
            cluster_id: name.as_str().into(),
            settings: Settings::default(),
            config,
            metrics: Metrics::register(&registry),
            scheduler: FairScheduler::new(&threads),
            threads,
        });
        let (drain, watch) = drain::channel();
        Self { name, block: Arc::clone(block), state, ctx, registry, tasks, certs, drain, watch }
    }

    /// A pod with a service account of its own name.
    pub(crate) fn workload(&self, name: &str, last: u8) -> Workload {
        Workload {
            uid: format!("{}//Pod/sample/{name}", self.name).into(),
            name: name.into(),
            namespace: "sample".into(),
            service_account: name.into(),
            addresses: vec![self.block.ip(last)],
            network: self.name.clone(),
            protocol: Protocol::Hbone,
            workload_name: name.into(),
            canonical_name: name.into(),
            canonical_revision: "v1".into(),
            cluster_id: self.name.as_str().into(),
            capacity: 1,
            ..Workload::default()
        }
    }

    /// The service `helloworld`, with a virtual address in this network.
    pub(crate) fn service(&self, vip: u8, identities: &[SpiffeId]) -> Service {
        Service {
            name: "helloworld".into(),
            namespace: "sample".into(),
            hostname: HOSTNAME.into(),
            vips: vec![NetworkAddress { network: self.name.clone(), address: self.block.ip(vip) }],
            cidr_vips: Vec::new(),
            ports: BTreeMap::from([(SERVICE_PORT, APP_PORT)]),
            subject_alt_names: identities.to_vec(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancer: None,
            ip_families: None,
            canonical: false,
            visibility: isthmus_model::Visibility::Public,
        }
    }

    pub(crate) fn push(&self, workloads: &[Workload], services: &[Service], policies: &[Policy]) {
        self.state.apply(Batch {
            upsert_workloads: workloads.to_vec(),
            upsert_services: services.to_vec(),
            upsert_policies: policies.iter().map(|policy| (policy.key(), policy.clone())).collect(),
            ..Batch::default()
        });
    }

    pub(crate) fn remove_policy(&self, key: &PolicyKey) {
        self.state.apply(Batch { remove_policies: vec![key.clone()], ..Batch::default() });
    }

    /// Starts the pod's proxy. `destination` and `plaintext` are the original destinations of all connections to its
    /// outbound and plaintext listeners.
    pub(crate) fn start_pod(
        &self,
        workload: &Workload,
        destination: SocketAddr,
        plaintext: Option<SocketAddr>,
    ) -> Pod {
        let _inside = self.ctx.threads.enter(self.ctx.threads.next());
        let listen = |port| StdListener::bind((workload.addresses[0], port)).unwrap();
        let bound = |listener| BoundListener::from_std(listener, false).unwrap();
        let (outbound, inbound_plaintext) = (bound(listen(0)), bound(listen(0)));
        let (outbound_at, plaintext_at) =
            (outbound.local_addr().unwrap(), inbound_plaintext.local_addr().unwrap());
        let listeners = Listeners {
            outbound: outbound.with_destination(destination),
            inbound: bound(listen(HBONE)),
            inbound_plaintext: match plaintext {
                Some(destination) => inbound_plaintext.with_destination(destination),
                None => inbound_plaintext,
            },
        };
        let ctx = Arc::clone(&self.ctx);
        let proxy = PodProxy::start(ctx, pod_ref(workload), listeners, Sockets::host(), self.watch.clone());
        Pod { proxy, outbound: outbound_at, plaintext: plaintext_at }
    }

    /// Starts a pod without a server.
    pub(crate) fn client(&self, workload: &Workload, destination: SocketAddr) -> Pod {
        self.start_pod(workload, destination, None)
    }

    /// Starts a pod without a client.
    pub(crate) fn server(&self, workload: &Workload) -> Pod {
        self.start_pod(workload, SocketAddr::new(workload.addresses[0], 1), None)
    }

    /// Starts the pod's application, an echo server.
    pub(crate) async fn echo(&self, workload: &Workload) -> Echo {
        Echo::listen(SocketAddr::new(workload.addresses[0], APP_PORT), &self.tasks).await
    }

    /// Opens a tunnel without a proxy, to send any header with any identity.
    pub(crate) async fn tunnel(&self, identity: &SpiffeId, to: SocketAddr, expected: &SpiffeId) -> Tunnel {
        let certificate = self.certs.certificate(identity).await.unwrap();
        let config = certificate.client_tls(std::slice::from_ref(expected)).config();
        let tcp = TcpStream::connect(to).await.unwrap();
        let session = TlsSession::connect(config, tcp, TIMEOUT).await.unwrap();
        client::start(session, &Settings::default(), &self.tasks).unwrap()
    }

    /// The value of the series of a family whose labels contain all of `labels`; 0 if there is none.
    pub(crate) fn metric(&self, family: &str, labels: &[&str]) -> u64 {
        let text = self.registry.encode().unwrap();
        let start = format!("{family}{{");
        let mut found = text
            .lines()
            .filter(|line| line.starts_with(&start) && labels.iter().all(|label| line.contains(label)));
        let value = found.next().map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap());
        assert!(found.next().is_none(), "{family} has several series with {labels:?}:\n{text}");
        value
    }

    /// Waits until a metric has a value: a record is written when its connection's task ends, after the client's close.
    pub(crate) async fn metric_becomes(&self, value: u64, family: &str, labels: &[&str]) {
        eventually(
            || self.metric(family, labels) == value,
            || format!("{family} {labels:?} is not {value}:\n{}", self.registry.encode().unwrap()),
        )
        .await;
    }
}

pub(crate) struct Pod {
    pub(crate) proxy: PodProxy,
    /// Address of the outbound listener.
    pub(crate) outbound: SocketAddr,
    /// Address of the plaintext listener.
    pub(crate) plaintext: SocketAddr,
}

impl Pod {
    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.outbound).await.unwrap()
    }
}

/// An echo server.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    accepted: Arc<std::sync::atomic::AtomicUsize>,
}

impl Echo {
    pub(crate) async fn listen(address: SocketAddr, tasks: &Tasks) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counter, connections) = (Arc::clone(&accepted), Tasks::new("echo"));
        tasks.spawn("echo", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                connections.spawn("echo", async move {
                    let (mut read, mut write) = stream.split();
                    // Some tests reset the connection.
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        Self { address, accepted }
    }

    /// Number of accepted connections.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// Time limit of anything on loopback.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) fn pod_ref(workload: &Workload) -> PodRef {
    PodRef {
        uid: workload.name.as_str().into(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
    }
}

/// Adds the workload to the service's endpoints.
pub(crate) fn serving(mut workload: Workload) -> Workload {
    workload.services.insert(service_key(), BTreeMap::from([(SERVICE_PORT, APP_PORT)]));
    workload
}

pub(crate) fn service_key() -> NamespacedHostname {
    NamespacedHostname { namespace: "sample".into(), hostname: HOSTNAME.into() }
}

/// A policy of the namespace that matches one principal.
pub(crate) fn policy(name: &str, action: Action, principal: &SpiffeId) -> Policy {
    let clause =
        Match { principals: vec![StringMatch::Exact(principal.principal().into())], ..Match::default() };
    Policy {
        name: name.into(),
        namespace: "sample".into(),
        scope: Scope::Namespace,
        action,
        rules: vec![vec![vec![clause]]],
        dry_run: false,
    }
}

/// Sends the bytes and a FIN, and returns what the peer sent until its FIN; an error if the connection was reset.
pub(crate) async fn exchange(stream: &mut TcpStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let work = async {
        let (mut read, mut write) = stream.split();
        let mut answer = Vec::new();
        let send = async {
            write.write_all(bytes).await?;
            write.shutdown().await
        };
        let (sent, received) = tokio::join!(send, read.read_to_end(&mut answer));
        sent?;
        received.map(|_| answer)
    };
    tokio::time::timeout(TIMEOUT, work).await.expect("the exchange timed out")
}

/// Sends one byte and waits for its echo: the connection is open end to end.
pub(crate) async fn ping(stream: &mut TcpStream) {
    let mut byte = [0];
    let work = async {
        stream.write_all(b"p").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
    };
    tokio::time::timeout(TIMEOUT, work).await.expect("no echo of one byte");
    assert_eq!(&byte, b"p");
}

/// Waits until the peer closes the connection; an error is a reset.
pub(crate) async fn closed(stream: &mut TcpStream) -> std::io::Result<usize> {
    let mut byte = [0];
    tokio::time::timeout(TIMEOUT, stream.read(&mut byte))
        .await
        .expect("the peer does not close the connection")
}
