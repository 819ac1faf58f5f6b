//! A small Kubernetes API server for one cluster of the playground: objects in memory, list and watch, patches,
//! service-account tokens, and the controllers that every cluster has. There is no RBAC: a valid token may do everything.

mod admission;
mod controllers;
mod discovery;
mod error;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
mod selector;
mod server;
mod shape;
mod store;
mod target;
#[cfg(test)]
mod test_server;
mod text;
mod token;
mod verbs;
mod watch;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::Ipv4Net;
use isthmus_rt::task::Tasks;
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub use admission::{Invalid, Webhook};
pub(crate) use error::Error;

use crate::manifest::Kind;
use crate::tls;
use admission::Admission;
use controllers::Settings;
use server::Server;
use store::Store;
use token::Issuer;

/// What an API server needs to be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Name of the cluster, for the log.
    #[arg(long)]
    pub cluster: String,
    /// Where to listen.
    #[arg(long, default_value = "0.0.0.0:6443")]
    pub listen: SocketAddr,
    /// The server's certificate chain, PEM.
    #[arg(long)]
    pub cert: PathBuf,
    /// The key of the certificate, PEM.
    #[arg(long)]
    pub key: PathBuf,
    /// Roots that clients trust this server by; published in every namespace as ConfigMap kube-root-ca.crt.
    #[arg(long)]
    pub client_ca: Option<PathBuf>,
    /// Addresses of services.
    #[arg(long)]
    pub service_cidr: Ipv4Net,
    /// File with the token of the administrator.
    #[arg(long)]
    pub admin_token_file: PathBuf,
    /// An external address: of the LoadBalancer service and the gateway of that name. May be repeated.
    #[arg(long, value_name = "NAMESPACE/NAME=ADDRESS", value_parser = load_balancer)]
    pub load_balancer: Vec<(String, IpAddr)>,
    /// The address of this server for the service default/kubernetes.
    #[arg(long)]
    pub advertise: Option<SocketAddr>,
}

/// Serves until the process ends. `webhook` is asked about every object that is written.
///
/// # Errors
/// When a file cannot be read or the address cannot be listened on.
pub async fn serve(options: Options, webhook: Webhook) -> anyhow::Result<()> {
    let tls = tls::server(&options.cert, &options.key, &[b"http/1.1"])?;
    let server = Arc::new(Server {
        store: Arc::new(Store::new()),
        issuer: Issuer::new()?,
        admission: Admission { service_cidr: options.service_cidr, webhook },
        settings: Settings {
            ca_pem: options.client_ca.as_deref().map(tls::read).transpose()?,
            load_balancers: options.load_balancer,
        },
        admin_token: tls::read(&options.admin_token_file)?.trim().to_owned(),
    });
    bootstrap(&server, options.advertise)?;
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("listening on {}", options.listen))?;
    tracing::info!(cluster = options.cluster, address = %options.listen, "API server is listening");
    match run(server, listener, tls, Tasks::new("api")).await {}
}

async fn run(
    server: Arc<Server>,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    tasks: Tasks,
) -> Infallible {
    tls::accept_loop(listener, tls, tasks, move |stream| {
        let server = Arc::clone(&server);
        async move {
            let service = service_fn(move |request| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).half_close(true);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "connection ended");
            }
        }
    })
    .await
}

/// The objects that every cluster begins with.
fn bootstrap(server: &Server, advertise: Option<SocketAddr>) -> Result<(), Error> {
    let create = |kind: &str, namespace: Option<&str>, object: Value| {
        let kind = Kind::named(kind).ok_or_else(|| Error::NoSuchPath(kind.to_owned()))?;
        server.change(|tx, context| verbs::create(tx, context, kind, namespace, object))
    };
    for name in ["default", "kube-system"] {
        create("Namespace", None, json!({"metadata": {"name": name}}))?;
    }
    let Some(address) = advertise else {
        return Ok(());
    };
    let first = server.admission.service_cidr.hosts().next();
    let port = json!({"name": "https", "port": 443, "targetPort": address.port(), "protocol": "TCP"});
    let service = json!({"metadata": {"name": "kubernetes"}, "spec": {"clusterIP": first, "ports": [port]}});
    create("Service", Some("default"), service)?;
    let slice = json!({
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
    });
    create("EndpointSlice", Some("default"), slice)?;
    Ok(())
}

/// `istio-system/istio-eastwestgateway=192.168.97.1`
fn load_balancer(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("is not NAMESPACE/NAME=ADDRESS")?;
    if name.split('/').filter(|part| !part.is_empty()).count() != 2 {
        return Err(format!("{name:?} is not NAMESPACE/NAME"));
    }
    let address = address.parse().map_err(|error| format!("{address:?}: {error}"))?;
    Ok((name.to_owned(), address))
}

#[cfg(test)]
mod tests;
