//! The connector under the gRPC channel: TCP, then TLS unless the scheme is `http`.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use isthmus_identity::provider::{ALPN_H2, VERSIONS};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::roots::Roots;
use super::{RootError, Server};

/// Why no connection to the control plane was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Name resolution or TCP failed.
    #[error("{host}:{port}: {source}")]
    Tcp {
        /// Host of the address.
        host: String,
        /// Its port.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// Name resolution, TCP and TLS took too long.
    #[error("{host}:{port}: not connected within {after:?}")]
    Timeout {
        /// Host of the address.
        host: String,
        /// Its port.
        port: u16,
        /// The timeout.
        after: Duration,
    },
    /// There are no roots to verify the server with.
    #[error(transparent)]
    Roots(#[from] RootError),
    /// The handshake failed.
    #[error("TLS with {host}:{port}: {reason}")]
    Tls {
        /// Host of the address.
        host: String,
        /// Its port.
        port: u16,
        /// Why.
        reason: String,
    },
}

/// Opens connections to one server.
#[derive(Clone)]
pub(super) struct Connector {
    server: Arc<Server>,
    roots: Arc<Roots>,
    timeout: Duration,
    last: Arc<Mutex<Option<VerifiedServer>>>,
}

/// The certificate chain that the server of the last connection presented.
struct VerifiedServer {
    chain: Vec<CertificateDer<'static>>,
    name: ServerName<'static>,
    /// The roots that it was last verified against.
    roots: Arc<RootCertStore>,
}

/// The current roots do not trust the server of the open connection.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the current root certificates do not trust the server: {0}")]
pub(crate) struct DistrustedServer(#[source] VerifyError);

/// Why a server's certificate was not accepted.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum VerifyError {
    #[error("the server presented no certificate")]
    NoCertificate,
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("cannot build a verifier: {0}")]
    Verifier(String),
    #[error("alternative hostname {0:?} is not a valid DNS name")]
    AltHostname(String),
}

/// A connected byte stream, encrypted or not.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Accepts a server whose certificate has its host name, or else the alternative one.
struct EitherName {
    inner: Arc<WebPkiServerVerifier>,
    alternative: ServerName<'static>,
}

/// A host name or an address, with or without brackets.
pub(super) fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    ServerName::try_from(bare.to_owned())
}

// === impl Connector ===

impl Connector {
    pub(super) fn new(server: Arc<Server>, timeout: Duration) -> Self {
        let roots = Arc::new(Roots::new(server.roots.clone()));
        Self { server, roots, timeout, last: Arc::default() }
    }

    pub(super) fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Reads the roots, and verifies the server of the open connection again if they changed.
    pub(super) async fn recheck(&self) -> Result<(), DistrustedServer> {
        if self.last().is_none() {
            return Ok(());
        }
        let Ok(current) = self.roots.load().await else { return Ok(()) };
        let Some(VerifiedServer { chain, name, roots }) = &mut *self.last() else { return Ok(()) };
        if Arc::ptr_eq(roots, &current) {
            return Ok(());
        }
        let verified = self.verifier(&current).and_then(|verifier| {
            let (leaf, rest) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
            Ok(verifier.verify_server_cert(leaf, rest, name, &[], UnixTime::now()).map(drop)?)
        });
        *roots = current;
        let address = &self.server.address;
        match verified {
            Ok(()) => {
                tracing::info!(%address, "root certificates changed and still trust the open connection to the control plane");
                Ok(())
            }
            Err(error) => Err(DistrustedServer(error)),
        }
    }

    fn last(&self) -> MutexGuard<'_, Option<VerifiedServer>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn verifier(&self, roots: &Arc<RootCertStore>) -> Result<Arc<dyn ServerCertVerifier>, VerifyError> {
        let provider = self.server.key_exchange.provider();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider)
            .build()
            .map_err(|error| VerifyError::Verifier(error.to_string()))?;
        Ok(match &self.server.alt_hostname {
            None => verifier,
            Some(other) => {
                let alternative = server_name(other).map_err(|_| VerifyError::AltHostname(other.clone()))?;
                Arc::new(EitherName { inner: verifier, alternative })
            }
        })
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Box<dyn Io>>, ConnectError> {
        let tls = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().to_owned();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let all = async {
            let tcp = tcp(&host, port).await?;
            let io: Box<dyn Io> =
                if tls { Box::new(self.tls(tcp, &host, port).await?) } else { Box::new(tcp) };
            Ok(TokioIo::new(io))
        };
        match tokio::time::timeout(self.timeout, all).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectError::Timeout { host: host.clone(), port, after: self.timeout }),
        }
    }

    async fn tls(
        &self,
        tcp: TcpStream,
        host: &str,
        port: u16,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
        let failed = |reason: String| ConnectError::Tls { host: host.to_owned(), port, reason };
        let roots = self.roots.load().await?;
        let name = server_name(host).map_err(|error| failed(error.to_string()))?;
        let verifier = self.verifier(&roots).map_err(|error| failed(error.to_string()))?;
        let mut config = ClientConfig::builder_with_provider(self.server.key_exchange.provider())
            .with_protocol_versions(VERSIONS)
            .map_err(|error| failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let connected =
            connector.connect(name.clone(), tcp).await.map_err(|error| failed(error.to_string()))?;
        let chain = connected.get_ref().1.peer_certificates().unwrap_or_default();
        let chain = chain.iter().map(|der| der.clone().into_owned()).collect();
        *self.last() = Some(VerifiedServer { chain, name, roots });
        Ok(connected)
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let failed = |source| ConnectError::Tcp { host: host.to_owned(), port, source };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(300))
        .with_interval(Duration::from_secs(75))
        .with_retries(9);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(failed)?;
    Ok(stream)
}

// === impl EitherName ===

impl fmt::Debug for EitherName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EitherName").field("alternative", &self.alternative).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for EitherName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name| self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        match verify(name) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => verify(&self.alternative),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
