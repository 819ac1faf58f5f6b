//! A small control plane of the mesh: reads the objects of one or more clusters, serves the agents of each cluster over
//! delta ADS, and signs certificates for pods. One process per primary cluster.

mod ca;
mod clusters;
mod controller;
#[cfg(test)]
mod fixture;
mod serve;
mod snapshot;
mod translate;
mod validate;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use isthmus_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use isthmus_proto::discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use isthmus_rt::task::Tasks;
use tokio::net::TcpListener;
use tonic::service::Routes;

use playground_k8s::client::Client;
use playground_k8s::tls;

pub use clusters::is_followed;
pub use serve::pushes;
pub use validate::validate;

use ca::Authority;
use clusters::ClusterId;
use controller::Follower;
use pushes::PushLog;
use serve::caller::{Account, Reviewer};
use serve::grpc::{ServerState, Services};
use translate::mesh_config::{self, Configured, Mesh};

/// The largest request: a client that reconnects names every version that it has.
const REQUEST: usize = 64 << 20;

/// What a control plane needs to be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Name of its own cluster, whose policies and mesh configuration count.
    #[arg(long)]
    pub cluster: String,
    /// Network of its own cluster, when the root namespace has no label topology.istio.io/network.
    #[arg(long, default_value = "")]
    pub network: String,
    /// How to reach its own API server.
    #[arg(long)]
    pub kubeconfig: PathBuf,
    /// Another cluster to read and to serve, and how to reach its API server. May be repeated.
    #[arg(long, value_name = "CLUSTER=KUBECONFIG", value_parser = remote)]
    pub remote: Vec<(String, PathBuf)>,
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Where the log of what was told to agents is read.
    #[arg(long, default_value = "127.0.0.1:15014")]
    pub debug_listen: SocketAddr,
    /// The server's certificate chain, PEM.
    #[arg(long)]
    pub cert: PathBuf,
    /// The key of the server's certificate, PEM.
    #[arg(long)]
    pub key: PathBuf,
    /// The intermediate that signs workloads' certificates, PEM.
    #[arg(long)]
    pub ca_cert: PathBuf,
    /// The key of the intermediate, PEM.
    #[arg(long)]
    pub ca_key: PathBuf,
    /// The root that all clusters share, PEM.
    #[arg(long)]
    pub root: PathBuf,
    /// Trust domain of the mesh.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,
    /// DNS domain of the clusters.
    #[arg(long, default_value = "cluster.local")]
    pub domain: String,
    /// Namespace of mesh-wide policies and of the mesh's own parts.
    #[arg(long, default_value = "istio-system")]
    pub root_namespace: String,
    /// Account of the node agents, which may ask for the certificates of pods on their node.
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "istio-system/ztunnel")]
    pub trusted_account: String,
    /// Longest life of a certificate, in seconds.
    #[arg(long, default_value_t = 24 * 3600)]
    pub max_certificate_life: u64,
    /// Mesh configuration, YAML; its trustDomain, trustDomainAliases and serviceScopeConfigs are used. A ConfigMap
    /// `istio` in the root namespace goes before it.
    #[arg(long)]
    pub mesh_config: Option<PathBuf>,
}

/// Serves until the process ends.
///
/// # Errors
/// When a file cannot be read or used, or the address cannot be listened on.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let server_tls = tls::server(&options.cert, &options.key, &[b"h2"])?;
    let life = Duration::from_secs(options.max_certificate_life);
    let authority = Authority::read(&options.ca_cert, &options.ca_key, &options.root, life)?;
    let trusted = Account::parse(&options.trusted_account)
        .with_context(|| format!("--trusted-account: {:?} is not NAMESPACE/NAME", options.trusted_account))?;
    let own = ClusterId(options.cluster.clone());
    let mut clients = vec![(own.clone(), Client::from_kubeconfig(&options.kubeconfig).await?)];
    for (id, kubeconfig) in &options.remote {
        clients.push((ClusterId(id.clone()), Client::from_kubeconfig(kubeconfig).await?));
    }
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("listening on {}", options.listen))?;
    let tasks = Tasks::new("istiod");
    let log = PushLog::default();
    log.serve(options.debug_listen, &tasks).await?;
    let roots = authority.roots().to_owned();
    let reviewer = Reviewer { own: own.clone(), clients: clients.iter().cloned().collect() };
    let follower = Follower::new(mesh(&options)?, own, options.network, clients, roots, log.clone());
    let known = follower.start(&tasks).await;
    let shared = ServerState { known, reviewer, authority, trusted, log, tasks: tasks.clone() };
    tracing::info!(cluster = options.cluster, address = %options.listen, "control plane is ready");
    match serve(shared, listener, server_tls, tasks).await {}
}

async fn serve(
    shared: ServerState,
    listener: TcpListener,
    server_tls: Arc<rustls::ServerConfig>,
    tasks: Tasks,
) -> Infallible {
    let services = Services(Arc::new(shared));
    let discovery =
        AggregatedDiscoveryServiceServer::new(services.clone()).max_decoding_message_size(REQUEST);
    let routes = Routes::new(discovery).add_service(IstioCertificateServiceServer::new(services)).prepare();
    let executor = tls::OnTasks(tasks.clone());
    tls::accept_loop(listener, server_tls, tasks, move |stream| {
        let mut http = hyper::server::conn::http2::Builder::new(executor.clone());
        http.timer(TokioTimer::new());
        let service = TowerToHyperService::new(routes.clone());
        async move {
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "connection ended");
            }
        }
    })
    .await
}

fn mesh(options: &Options) -> anyhow::Result<Mesh> {
    let mesh = Mesh {
        trust_domain: options.trust_domain.clone(),
        aliases: Vec::new(),
        root_namespace: options.root_namespace.clone(),
        domain: options.domain.clone(),
        scopes: mesh_config::default_scopes(),
    };
    let Some(path) = &options.mesh_config else {
        return Ok(mesh);
    };
    let configured = Configured::read(&tls::read(path)?);
    Ok(mesh.with(configured.map_err(|reason| anyhow::anyhow!("{}: {reason}", path.display()))?))
}

/// `west=/path/to/kubeconfig`
fn remote(text: &str) -> Result<(String, PathBuf), String> {
    let (id, path) = text.split_once('=').ok_or("is not CLUSTER=KUBECONFIG")?;
    if id.is_empty() || path.is_empty() {
        return Err("is not CLUSTER=KUBECONFIG".to_owned());
    }
    Ok((id.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests;
