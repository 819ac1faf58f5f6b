//! One network of the mesh on loopback: its state, its certificates, its pods. Every test has addresses of its own.

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
use isthmus_state::{Batch, Options, State};
use isthmus_sys::socket::Sockets;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The HBONE port, which `resolve` knows and tests cannot move.
pub(crate) const HBONE: u16 = 15008;
/// What clients connect to.
pub(crate) const SERVICE_PORT: u16 = 5000;
/// Where applications listen.
pub(crate) const APP_PORT: u16 = 8080;
pub(crate) const HOSTNAME: &str = "helloworld.sample.svc.cluster.local";

/// A block of 256 loopback addresses that no other test has.
pub(crate) struct Block {
    net: [u8; 3],
    _claim: StdListener,
}

impl Block {
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

/// One network.
pub(crate) struct Network {
    pub(crate) name: NetworkId,
    pub(crate) block: Arc<Block>,
    pub(crate) state: State,
    pub(crate) world: Arc<ProxyContext>,
    pub(crate) registry: isthmus_rt::metrics::Registry,
    pub(crate) tasks: Tasks,
    pub(crate) certs: Manager,
    pub(crate) drain: Drain,
    pub(crate) watch: Watch,
}

impl Network {
    pub(crate) fn new(name: &str, block: &Arc<Block>) -> Self {
        Self::with_config(
            name,
            block,
            Config { workload_deadline: Duration::from_millis(50), ..Config::default() },
        )
    }

    pub(crate) fn with_config(name: &str, block: &Arc<Block>, config: Config) -> Self {
        Self::signed_by(name, block, config, Arc::new(FakeSigner::new()), Trust::default())
    }

    pub(crate) fn with_names(
        name: &str,
        block: &Arc<Block>,
        config: Config,
        names: Arc<dyn HostResolver>,
    ) -> Self {
        Self::make((name, block), config, (Arc::new(FakeSigner::new()), Trust::default()), names)
    }

    pub(crate) fn signed_by(
        name: &str,
        block: &Arc<Block>,
        config: Config,
        signer: Arc<dyn Signer>,
        trust: Trust,
    ) -> Self {
        Self::make((name, block), config, (signer, trust), Arc::new(NoHostResolver))
    }

    fn make(
        (name, block): (&str, &Arc<Block>),
        config: Config,
        (signer, trust): (Arc<dyn Signer>, Trust),
        names: Arc<dyn HostResolver>,
    ) -> Self {
        isthmus_identity::install_crypto_provider();
        let (name, tasks, registry) = (NetworkId::from(name), Tasks::new("test"), Default::default());
        let identity = isthmus_identity::Config { trust, ..isthmus_identity::Config::default() };
        let certs = Manager::new(signer, identity, &tasks);
        let state =
            State::new(Options { own_network: name.clone(), ports: config.ports, ..Options::default() });
        let world = Arc::new(ProxyContext {
            state: state.clone(),
            certs: Arc::new(certs.clone()),
            network: name.clone(),
            host_resolver: names,
            cluster_id: name.as_str().into(),
            settings: Settings::default(),
            config,
            metrics: Metrics::register(&registry),
            scheduler: FairScheduler::default(),
        });
        let (drain, watch) = drain::channel();
        Self { name, block: Arc::clone(block), state, world, registry, tasks, certs, drain, watch }
    }

    /// A pod with an identity named like it.
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

    /// Runs the pod's data plane. Its outbound listener takes every connection as one to `destination`; its plaintext
    /// listener likewise to `plaintext`. Also answers where those two listen.
    pub(crate) fn run(
        &self,
        workload: &Workload,
        destination: SocketAddr,
        plaintext: Option<SocketAddr>,
    ) -> Pod {
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
        let world = Arc::clone(&self.world);
        let proxy = PodProxy::start(world, info(workload), listeners, Sockets::host(), self.watch.clone());
        Pod { proxy, outbound: outbound_at, plaintext: plaintext_at }
    }

    /// Runs a pod that only calls.
    pub(crate) fn client(&self, workload: &Workload, destination: SocketAddr) -> Pod {
        self.run(workload, destination, None)
    }

    /// Runs a pod that is only called.
    pub(crate) fn server(&self, workload: &Workload) -> Pod {
        self.run(workload, SocketAddr::new(workload.addresses[0], 1), None)
    }

    /// An application of a pod that sends back what it gets, and says who connected.
    pub(crate) async fn echo(&self, workload: &Workload) -> Echo {
        Echo::listen(SocketAddr::new(workload.addresses[0], APP_PORT), &self.tasks).await
    }

    /// A tunnel to an HBONE port that is not our own outbound side's: any identity, any header.
    pub(crate) async fn tunnel(&self, as_who: &SpiffeId, to: SocketAddr, expected: &SpiffeId) -> Tunnel {
        let certificate = self.certs.certificate(as_who).await.unwrap();
        let config = certificate.client_tls(std::slice::from_ref(expected)).config();
        let tcp = TcpStream::connect(to).await.unwrap();
        let session = TlsSession::connect(config, tcp, PATIENCE).await.unwrap();
        client::handshake(session, &Settings::default(), &self.tasks).await.unwrap()
    }

    /// The value of the one series of a family whose labels contain all of `labels`; 0 when there is none.
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

    /// Waits until a metric has a value: records are written when a connection's task ends, which nobody sees otherwise.
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
    /// Where it takes captured outbound connections.
    pub(crate) outbound: SocketAddr,
    /// Where it takes captured plaintext.
    pub(crate) plaintext: SocketAddr,
}

impl Pod {
    pub(crate) async fn dial(&self) -> TcpStream {
        TcpStream::connect(self.outbound).await.unwrap()
    }
}

/// An application that sends back what it gets.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    seen: Arc<std::sync::atomic::AtomicUsize>,
}

impl Echo {
    pub(crate) async fn listen(address: SocketAddr, tasks: &Tasks) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counter, mine) = (Arc::clone(&seen), Tasks::new("echo"));
        tasks.spawn("echo", async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                mine.spawn("echo", async move {
                    let (mut read, mut write) = stream.split();
                    // A connection that is cut is what some tests are about.
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        Self { address, seen }
    }

    /// Connections so far.
    pub(crate) fn seen(&self) -> usize {
        self.seen.load(std::sync::atomic::Ordering::SeqCst)
    }
}

/// How long anything on loopback may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn info(workload: &Workload) -> PodRef {
    PodRef {
        uid: workload.name.as_str().into(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        service_account: workload.service_account.clone(),
    }
}

/// A workload as a member of the service.
pub(crate) fn serving(mut workload: Workload) -> Workload {
    workload.services.insert(service_key(), BTreeMap::from([(SERVICE_PORT, APP_PORT)]));
    workload
}

pub(crate) fn service_key() -> NamespacedHostname {
    NamespacedHostname { namespace: "sample".into(), hostname: HOSTNAME.into() }
}

/// A policy of the namespace about one principal.
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

/// Sends, finishes, and answers what came back; an error when it did not end well.
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
    tokio::time::timeout(PATIENCE, work).await.expect("the exchange takes too long")
}

/// Sends one byte and waits for it to come back: the connection is open end to end.
pub(crate) async fn ping(stream: &mut TcpStream) {
    let mut byte = [0];
    let work = async {
        stream.write_all(b"p").await.unwrap();
        stream.read_exact(&mut byte).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, work).await.expect("no answer to one byte");
    assert_eq!(&byte, b"p");
}

/// Waits for the other side to end the connection; an error is a reset.
pub(crate) async fn end(stream: &mut TcpStream) -> std::io::Result<usize> {
    let mut byte = [0];
    tokio::time::timeout(PATIENCE, stream.read(&mut byte)).await.expect("nobody ends the connection")
}
