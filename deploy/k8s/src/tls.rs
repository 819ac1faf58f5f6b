//! TLS for the playground's own servers and clients: PEM files into rustls configurations, and the one accept loop. It
//! knows nothing of what is spoken inside.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::task::Tasks;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// A client that does not finish its handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait before accepting again when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file or text holds no PEM of the wanted sort.
    #[error("{what} holds no usable {wanted}: {reason}")]
    Pem {
        /// The file, or where the text came from.
        what: String,
        /// `certificate` or `private key`.
        wanted: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// The key does not belong to the certificate, or rustls refuses them.
    #[error("TLS configuration: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Reads a whole file.
///
/// # Errors
/// With the file's name when it cannot be read.
pub fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// The certificates of a PEM text, at least one; `what` names the text in errors.
///
/// # Errors
/// When there is none or one cannot be parsed.
pub fn certificates(what: &str, pem: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |reason: String| Error::Pem { what: what.to_owned(), wanted: "certificate", reason };
    let found = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() { Err(bad("it is empty".to_owned())) } else { Ok(found) }
}

/// A server's configuration from its certificate chain and key, without client certificates.
///
/// # Errors
/// When a file cannot be read or its contents do not fit together.
pub fn server(cert: &Path, key: &Path, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let chain = certificates(&cert.display().to_string(), &read(cert)?)?;
    let private = PrivateKeyDer::from_pem_slice(read(key)?.as_bytes()).map_err(|error| Error::Pem {
        what: key.display().to_string(),
        wanted: "private key",
        reason: error.to_string(),
    })?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A client's configuration that trusts the given roots; `what` names the text in errors.
///
/// # Errors
/// When the text holds no certificate.
pub fn client(what: &str, roots_pem: &str) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    for root in certificates(what, roots_pem)? {
        roots.add(root)?;
    }
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The crypto provider that all of this project uses.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Accepts TLS connections for ever and runs `serve` for each in a task of its own.
pub async fn accept_loop<S, F>(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    tasks: Tasks,
    serve: S,
) -> std::convert::Infallible
where
    S: Fn(tokio_rustls::server::TlsStream<TcpStream>) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let acceptor = TlsAcceptor::from(config);
    loop {
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        tasks.spawn("connection", async move {
            let _ = tcp.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                Ok(Ok(tls)) => serve(tls).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake timed out"),
            }
        });
    }
}

/// Lets hyper start its helper futures in a group of tasks.
#[derive(Debug, Clone)]
pub struct OnTasks(pub Tasks);

impl<F> hyper::rt::Executor<F> for OnTasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("http", future);
    }
}
