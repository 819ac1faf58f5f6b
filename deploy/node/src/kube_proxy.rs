//! The stand-in for kube-proxy and the load balancer of one node: owns the addresses of Services in a namespace of its
//! own that the node routes to, and carries what comes there to a ready endpoint, chosen at random.
//!
//! It serves the pods that are not in the mesh and the gateways' outside addresses. It forwards in user space, so an
//! endpoint sees this node's proxy as the client.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use isthmus_rt::task::Tasks;
use tokio::sync::watch;

use crate::endpoints::{self, Protocol};
use playground_k8s::client::Client;
use playground_k8s::manifest::Kind;
use playground_k8s::mirror::Mirror;

mod tcp;
mod udp;

/// Where it runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The API server.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// A LoadBalancer address that this node announces.
    #[arg(long)]
    announce: Vec<Ipv4Addr>,
}

/// The endpoints of one port, as they change.
type Backends = watch::Receiver<BTreeSet<SocketAddr>>;
/// A Service's address and port.
type Front = (Protocol, SocketAddr);

/// Runs for ever.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let client = Client::from_kubeconfig(&options.kubeconfig).await?;
    let tasks = Tasks::new("kube-proxy");
    let mut services = Mirror::follow(&client, Kind::known("Service")?, &tasks);
    let mut pods = Mirror::follow(&client, Kind::known("Pod")?, &tasks);
    let mut slices = Mirror::follow(&client, Kind::known("EndpointSlice")?, &tasks);
    let mut fronts = Fronts::default();
    loop {
        tokio::select! {
            changed = services.changed() => changed?,
            changed = pods.changed() => changed?,
            changed = slices.changed() => changed?,
        }
        if !(services.is_synced() && pods.is_synced() && slices.is_synced()) {
            continue;
        }
        let mut wanted = BTreeMap::new();
        for service in services.objects() {
            let ports = endpoints::ports(service, pods.objects(), slices.objects());
            for address in endpoints::addresses(service, &options.announce) {
                let fronts = ports.iter().map(|port| {
                    let front = (port.protocol, SocketAddr::new(IpAddr::V4(address), port.port));
                    (front, port.backends.clone())
                });
                wanted.extend(fronts);
            }
        }
        fronts.set(wanted);
    }
}

/// What is listened on.
#[derive(Default)]
struct Fronts {
    open: BTreeMap<Front, OpenFront>,
}

/// Dropping it closes the front and what goes through it.
struct OpenFront {
    backends: watch::Sender<BTreeSet<SocketAddr>>,
    _tasks: Tasks,
}

impl Fronts {
    /// Opens, updates and closes fronts so that they are these. Without endpoints a front is closed: its clients are
    /// refused, as they are by kube-proxy, instead of waiting.
    fn set(&mut self, mut wanted: BTreeMap<Front, BTreeSet<SocketAddr>>) {
        wanted.retain(|_, backends| !backends.is_empty());
        self.open.retain(|front, _| wanted.contains_key(front));
        for (front, backends) in wanted {
            if let Some(open) = self.open.get(&front) {
                open.backends.send_if_modified(|now| {
                    let changed = *now != backends;
                    *now = backends;
                    changed
                });
                continue;
            }
            match open(front, backends) {
                Ok(opened) => _ = self.open.insert(front, opened),
                // It is tried again with the next change.
                Err(error) => tracing::error!(
                    ?front,
                    error = format!("{error:#}"),
                    "cannot serve the address of a Service, trying again when it changes"
                ),
            }
        }
    }
}

fn open((protocol, address): Front, backends: BTreeSet<SocketAddr>) -> anyhow::Result<OpenFront> {
    let (backends, receiver) = watch::channel(backends);
    let tasks = Tasks::new(format!("{protocol:?} {address}"));
    match protocol {
        Protocol::Tcp => tcp::open(address, receiver, &tasks),
        Protocol::Udp => udp::open(address, receiver, &tasks),
    }
    .with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(?protocol, %address, "forwarding to a Service");
    Ok(OpenFront { backends, _tasks: tasks })
}

/// One of the endpoints.
fn choose(backends: &Backends) -> Option<SocketAddr> {
    let backends = backends.borrow();
    let at = fastrand::usize(..backends.len().max(1));
    backends.iter().nth(at).copied()
}
