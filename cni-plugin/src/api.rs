//! Reads one pod and one namespace from the API server, blocking, each within a deadline. It judges neither.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_proto::enroll::Labels;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, StreamOwned,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::http::{self, HttpError, Timed};
use crate::kubeconfig::{Access, BadKubeconfig};
use crate::netconf::PodName;

/// Longest wait for one object.
const DEADLINE: Duration = Duration::from_secs(10);
/// etcd keeps no object larger than 1.5 MiB by default.
const LARGEST: u64 = 8 << 20;

/// What the rule needs of a pod.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Pod {
    /// Name, labels and annotations.
    #[serde(default)]
    pub(crate) metadata: Metadata,
    /// The part of the specification that matters.
    #[serde(default)]
    pub(crate) spec: PodSpec,
}

/// The part of a pod's specification that the rule needs.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    /// Whether the pod shares the node's network namespace.
    pub(crate) host_network: bool,
}

/// Labels and annotations of any object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    /// `None` when there are none.
    pub(crate) labels: Option<Labels>,
    /// `None` when there are none.
    pub(crate) annotations: Option<Labels>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamespaceObject {
    metadata: Metadata,
}

/// The API server, as the kubeconfig describes it.
pub(crate) struct Api {
    access: Access,
    tls: Option<Arc<ClientConfig>>,
}

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The kubeconfig is of no use.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] BadKubeconfig),
    /// Its roots or its server's name are of no use.
    #[error("kubeconfig: TLS to {server}: {reason}")]
    Tls { server: String, reason: String },
    /// No answer.
    #[error("GET {server}{path}: {error}")]
    Exchange { server: String, path: String, error: HttpError },
    /// Another answer than 200.
    #[error("GET {server}{path}: status {status}: {reason}")]
    Status { server: String, path: String, status: u16, reason: String },
    /// The answer is no such object.
    #[error("GET {server}{path}: {error}")]
    Decode { server: String, path: String, error: serde_json::Error },
}

// === impl Api ===

impl Api {
    /// Reads the kubeconfig; opens no connection yet.
    ///
    /// # Errors
    /// When the file, its roots or its server's name are of no use.
    pub(crate) fn load(kubeconfig: &Path) -> Result<Self, ApiError> {
        let access = Access::load(kubeconfig)?;
        let tls = if access.server.tls {
            let config = client_config(&access)
                .map_err(|reason| ApiError::Tls { server: access.server.authority(), reason })?;
            Some(Arc::new(config))
        } else {
            None
        };
        Ok(Self { access, tls })
    }

    /// Reads the pod and the labels of its namespace.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub(crate) fn pod_and_namespace(&self, pod: &PodName) -> Result<(Pod, Labels), ApiError> {
        let PodName { namespace, name } = pod;
        let found: Pod = self.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))?;
        let around: NamespaceObject = self.get(&format!("/api/v1/namespaces/{namespace}"))?;
        Ok((found, around.metadata.labels.unwrap_or_default()))
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let (server, path) = (self.access.server.authority(), format!("{}{path}", self.access.server.path));
        let response = match self.exchange(&server, &path) {
            Ok(response) => response,
            Err(error) => return Err(ApiError::Exchange { server, path, error }),
        };
        if response.status != 200 {
            let reason = reason(&response.body);
            return Err(ApiError::Status { server, path, status: response.status, reason });
        }
        serde_json::from_slice(&response.body).map_err(|error| ApiError::Decode { server, path, error })
    }

    fn exchange(&self, host: &str, target: &str) -> Result<http::Response, HttpError> {
        let until = Instant::now() + DEADLINE;
        let bearer = self.access.token.as_ref().map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|value| ("Authorization", value.as_str())).collect();
        let request =
            http::Request { method: "GET", target, host, headers: &headers, body: None, limit: LARGEST };
        let socket = Timed::new(self.connect(until)?, until, DEADLINE);
        http::exchange(self.secure(socket)?, &request)
    }

    fn connect(&self, until: Instant) -> io::Result<TcpStream> {
        let server = &self.access.server;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in (server.host.as_str(), server.port).to_socket_addrs()? {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn secure(&self, socket: Timed<TcpStream>) -> io::Result<Stream> {
        let Some(config) = &self.tls else { return Ok(Stream::Plain(socket)) };
        let name = self.access.server_name.as_ref().unwrap_or(&self.access.server.host);
        let name = ServerName::try_from(name.clone()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(Stream::Tls(Box::new(StreamOwned::new(connection, socket))))
    }
}

/// Kubernetes answers errors with a `Status` object; anything else is shown as it is, cut.
fn reason(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Status {
        message: String,
    }
    serde_json::from_slice::<Status>(body).map_or_else(
        |_| String::from_utf8_lossy(&body[..body.len().min(256)]).trim().to_owned(),
        |status| status.message,
    )
}

fn client_config(access: &Access) -> Result<ClientConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    if access.insecure {
        let any = Arc::new(AnyCertificate(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth());
    }
    let pem = access.ca.as_deref().ok_or("the cluster has no certificate-authority and is not insecure")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("certificate-authority: {error}"))?;
        roots.add(certificate).map_err(|error| format!("certificate-authority: {error}"))?;
    }
    if roots.is_empty() {
        return Err("certificate-authority: no PEM certificate in it".to_owned());
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Either kind of stream to the server.
enum Stream {
    Plain(Timed<TcpStream>),
    Tls(Box<StreamOwned<ClientConnection, Timed<TcpStream>>>),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// `insecure-skip-tls-verify`: the operator asked for it, so the chain is not looked at; the handshake still is.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
