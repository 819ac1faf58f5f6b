//! Reads one pod and one namespace from the API server, blocking, each within a deadline. It does not decide what they
//! mean for the mesh.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::enroll::Labels;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::http::{Client, HttpError, TlsConnector};
use crate::kubeconfig::{Access, BadKubeconfig};
use crate::netconf::PodName;

/// Longest wait for one object.
const DEADLINE: Duration = Duration::from_secs(10);
/// etcd keeps no object larger than 1.5 MiB by default.
const MAX_BODY: u64 = 8 << 20;

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
    kubeconfig: String,
    client: Client,
}

/// Why an object could not be read. Each message names the server and the path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The kubeconfig is unusable.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] BadKubeconfig),
    /// Its roots or its server's name are unusable.
    #[error("kubeconfig: TLS to {server}: {reason}")]
    Tls { server: String, reason: String },
    /// No answer.
    #[error("API server: GET {server}{path}: {error}")]
    Exchange { server: String, path: String, error: HttpError },
    /// The token is not accepted. That of a pod is void as soon as the pod is deleted.
    #[error(
        "API server: GET {server}{path}: status 401: the token of {kubeconfig} is not valid any more: it has expired, or the \
         node pod that wrote it is gone and no other has replaced it; check that the node pod of this node is running"
    )]
    Unauthorized { server: String, path: String, kubeconfig: String },
    /// Another answer than 200.
    #[error("API server: GET {server}{path}: status {status}: {reason}")]
    Status { server: String, path: String, status: u16, reason: String },
    /// The answer is not the object that was asked for.
    #[error("API server: GET {server}{path}: unexpected answer: {error}")]
    Decode { server: String, path: String, error: serde_json::Error },
}

// === impl Api ===

impl Api {
    /// Reads the kubeconfig; opens no connection yet.
    ///
    /// # Errors
    /// When the file, its roots or its server's name are unusable.
    pub(crate) fn load(kubeconfig: &Path) -> Result<Self, ApiError> {
        let access = Access::load(kubeconfig)?;
        let tls = access.server.tls.then(|| tls(&access)).transpose();
        let tls = tls.map_err(|reason| ApiError::Tls { server: access.server.authority(), reason })?;
        let kubeconfig = kubeconfig.display().to_string();
        Ok(Self { access, kubeconfig, client: Client::tcp(tls, DEADLINE, MAX_BODY) })
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
        let scheme = if self.access.server.tls { "https" } else { "http" };
        let uri = format!("{scheme}://{server}{path}");
        let response = match self.client.get(&uri, self.access.token.as_deref()) {
            Ok(response) => response,
            Err(error) => return Err(ApiError::Exchange { server, path, error }),
        };
        if response.status == 401 {
            return Err(ApiError::Unauthorized { server, path, kubeconfig: self.kubeconfig.clone() });
        }
        if response.status != 200 {
            let reason = reason(&response.body);
            return Err(ApiError::Status { server, path, status: response.status, reason });
        }
        serde_json::from_slice(&response.body).map_err(|error| ApiError::Decode { server, path, error })
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

fn tls(access: &Access) -> Result<TlsConnector, String> {
    let config = Arc::new(client_config(access)?);
    let name = access.server_name.as_ref().unwrap_or(&access.server.host);
    let name = ServerName::try_from(name.clone()).map_err(|error| format!("{name:?}: {error}"))?;
    Ok(TlsConnector { config, name })
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

/// `insecure-skip-tls-verify`: the operator asked for it, so the chain is not verified; the handshake's signature is.
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
