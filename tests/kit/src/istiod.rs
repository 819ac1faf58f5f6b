//! A scripted control plane: delta ADS and the CA on one TLS port.
//!
//! Streams are handed to the test, which reads requests and pushes responses; either side can be raw bytes, so that a
//! mistake in the shared message definitions shows. It does not translate any Kubernetes object as istiod would.

mod grpc;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use isthmus_proto::ca::{IstioCertificateRequest, IstioCertificateResponse};
use isthmus_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use isthmus_rt::task::Tasks;
use prost::Message;
use prost_types::value::Kind;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::pki::{Ca, Spec};

/// Longest wait for something that happens at once unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// The names that the server's certificate carries besides its addresses.
pub const HOST_NAMES: [&str; 2] = ["localhost", "istiod.istio-system.svc"];

/// A running control plane. Everything ends with it, connections included.
pub struct Istiod {
    address: SocketAddr,
    root: String,
    ca: Arc<Ca>,
    streams: mpsc::UnboundedReceiver<AdsStream>,
    shared: Arc<ServerState>,
    tasks: Tasks,
}

/// One ADS stream of a client.
pub struct AdsStream {
    metadata: MetadataMap,
    requests: mpsc::UnboundedReceiver<Bytes>,
    responses: mpsc::UnboundedSender<Result<Bytes, Status>>,
}

/// One request for a certificate.
#[derive(Debug, Clone)]
pub struct Signing {
    /// Its headers.
    pub metadata: MetadataMap,
    /// The undecoded message.
    pub raw: Bytes,
    /// The message.
    pub request: IstioCertificateRequest,
}

/// What the CA answers to a request.
pub enum Answer {
    /// Answers with this chain.
    Chain(Vec<String>),
    /// Answers with an error.
    Refuse(Status),
    /// Never answers.
    Silence,
}

type Script = Box<dyn Fn(&Signing) -> Answer + Send + Sync>;

/// State of the server that its connections share.
pub(crate) struct ServerState {
    streams: mpsc::UnboundedSender<AdsStream>,
    signings: Mutex<Vec<Signing>>,
    script: Mutex<Script>,
}

// === impl Istiod ===

impl Istiod {
    /// Starts on a free port of loopback, with a certificate of `ca`, which also signs every request.
    ///
    /// # Errors
    /// When there is no port or no certificate.
    pub async fn start(ca: &Arc<Ca>) -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), ca).await
    }

    /// Starts on an address, such as that of an earlier server that was stopped.
    ///
    /// # Errors
    /// As [`Istiod::start`].
    pub async fn start_at(address: SocketAddr, ca: &Arc<Ca>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        Self::start_on(listener, ca)
    }

    /// Starts it on a listener, perhaps of another network namespace.
    ///
    /// # Errors
    /// When its certificate cannot be made.
    pub fn start_on(listener: TcpListener, ca: &Arc<Ca>) -> anyhow::Result<Self> {
        let names = [HOST_NAMES[0], HOST_NAMES[1], "127.0.0.1"];
        let tls = TlsAcceptor::from(ca.server(&names)?.server_config(false, &["h2"])?);
        let address = listener.local_addr()?;
        let (streams_tx, streams) = mpsc::unbounded_channel();
        let shared = Arc::new(ServerState {
            streams: streams_tx,
            signings: Mutex::default(),
            script: Mutex::new(Box::new(signer(Arc::clone(ca)))),
        });
        let (tasks, connections) = (Tasks::new("istiod"), Tasks::new("istiod connections"));
        tasks.spawn("accept", accept(listener, tls, Arc::clone(&shared), connections));
        Ok(Self { address, root: ca.root_pem(), ca: Arc::clone(ca), streams, shared, tasks })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL by address; [`HOST_NAMES`] are the other names it can prove.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// PEM of the root it is verified by.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.root
    }

    /// The next stream that a client opens.
    ///
    /// # Errors
    /// When none is opened.
    pub async fn next_stream(&mut self) -> anyhow::Result<AdsStream> {
        tokio::time::timeout(PATIENCE, self.streams.recv())
            .await
            .context("no ADS stream was opened")?
            .context("stopped")
    }

    /// Replaces the CA's behaviour.
    pub fn on_sign(&self, script: impl Fn(&Signing) -> Answer + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap_or_else(PoisonError::into_inner) = Box::new(script);
    }

    /// The CA's behaviour until it is replaced.
    pub fn signer(&self) -> impl Fn(&Signing) -> Answer + use<> {
        signer(Arc::clone(&self.ca))
    }

    /// Every request for a certificate so far.
    #[must_use]
    pub fn signings(&self) -> Vec<Signing> {
        self.shared.signings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops: the port is closed and every connection is reset.
    pub async fn stop(self) {
        self.tasks.abort_all().await;
    }
}

// === impl AdsStream ===

impl AdsStream {
    /// A header that the client sent.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.metadata.get(name)?.to_str().ok()
    }

    /// The client's next message, as bytes.
    ///
    /// # Errors
    /// When none comes, or the stream ended.
    pub async fn recv_raw(&mut self) -> anyhow::Result<Bytes> {
        tokio::time::timeout(PATIENCE, self.requests.recv())
            .await
            .context("no request came")?
            .context("stream ended")
    }

    /// The client's next message.
    ///
    /// # Errors
    /// When none comes, or the stream ended, or it does not parse.
    pub async fn recv(&mut self) -> anyhow::Result<DeltaDiscoveryRequest> {
        Ok(DeltaDiscoveryRequest::decode(self.recv_raw().await?)?)
    }

    /// The messages that a stream begins with, one per type, in the client's order.
    ///
    /// # Errors
    /// As [`AdsStream::recv`].
    pub async fn subscriptions(&mut self) -> anyhow::Result<[DeltaDiscoveryRequest; 2]> {
        Ok([self.recv().await?, self.recv().await?])
    }

    /// Pushes a response.
    pub fn push(&self, response: &DeltaDiscoveryResponse) {
        self.push_raw(response.encode_to_vec());
    }

    /// Pushes bytes as a response.
    pub fn push_raw(&self, bytes: impl Into<Bytes>) {
        // A client that is gone shows by sending no ACK.
        let _ = self.responses.send(Ok(bytes.into()));
    }

    /// Ends the stream with an internal error.
    pub fn abort(self, message: &str) {
        self.fail(Status::internal(message));
    }

    /// The client's message that has arrived already, if any.
    pub fn try_recv(&mut self) -> Option<Bytes> {
        self.requests.try_recv().ok()
    }

    /// Ends the stream with an error.
    pub fn fail(self, status: Status) {
        let _ = self.responses.send(Err(status));
    }

    /// Ends the stream without an error.
    pub fn end(self) {
        drop(self);
    }
}

// === impl Signing ===

impl Signing {
    /// The identity that the request is for.
    #[must_use]
    pub fn impersonated(&self) -> Option<&str> {
        match self.request.metadata.as_ref()?.fields.get("ImpersonatedIdentity")?.kind.as_ref()? {
            Kind::StringValue(identity) => Some(identity),
            _ => None,
        }
    }
}

impl Signing {
    /// The identity of the caller's token, if that is a service account.
    fn own_identity(&self) -> Option<String> {
        let token = self.metadata.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
        let (namespace, name) = token.trim().strip_prefix("system:serviceaccount:")?.split_once(':')?;
        Some(format!("spiffe://cluster.local/ns/{namespace}/sa/{name}"))
    }
}

/// A response with these resources.
#[must_use]
pub fn response(
    type_url: &str,
    nonce: &str,
    resources: Vec<Resource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources,
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..DeltaDiscoveryResponse::default()
    }
}

/// A named resource.
#[must_use]
pub fn resource(type_url: &str, name: &str, version: &str, message: &impl Message) -> Resource {
    raw_resource(type_url, name, version, message.encode_to_vec())
}

/// A named resource with arbitrary bytes for a body.
#[must_use]
pub fn raw_resource(type_url: &str, name: &str, version: &str, body: Vec<u8>) -> Resource {
    Resource {
        version: version.to_owned(),
        resource: Some(prost_types::Any { type_url: type_url.to_owned(), value: body }),
        name: name.to_owned(),
        aliases: Vec::new(),
    }
}

impl Answer {
    /// A refusal with a gRPC code.
    #[must_use]
    pub fn refusal(code: i32, reason: &str) -> Self {
        Self::Refuse(Status::new(tonic::Code::from_i32(code), reason))
    }

    /// A refusal for want of permission.
    #[must_use]
    pub fn permission_denied(reason: &str) -> Self {
        Self::Refuse(Status::permission_denied(reason))
    }
}

/// Signs every request; the chain is leaf first, root last. Who asks for no identity gets that of its token, which is then
/// a service account (`system:serviceaccount:NAMESPACE:NAME`).
fn signer(ca: Arc<Ca>) -> impl Fn(&Signing) -> Answer {
    move |signing| {
        let ttl = Duration::from_secs(signing.request.validity_duration.unsigned_abs());
        let identity = signing.impersonated().map(str::to_owned).or_else(|| signing.own_identity());
        let mut spec = Spec { uris: identity.into_iter().collect(), ..Spec::default() };
        spec.not_after = std::time::SystemTime::now() + ttl;
        match ca.sign(&signing.request.csr, &spec) {
            Ok(leaf) => Answer::Chain(vec![leaf, ca.root_pem()]),
            Err(error) => Answer::Refuse(Status::invalid_argument(error.to_string())),
        }
    }
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<ServerState>, connections: Tasks) {
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn("connection", async move {
            // A client that rejects the certificate ends here; the test sees that it opens no stream.
            let Ok(io) = tls.accept(tcp).await else { return };
            let service =
                hyper::service::service_fn(move |request| grpc::route(Arc::clone(&shared), request));
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(io), service)
                .await;
        });
    }
}

// === impl ServerState ===

impl ServerState {
    /// A client opened a stream: hands it to the test.
    pub(crate) fn stream(
        &self,
        metadata: MetadataMap,
    ) -> (mpsc::UnboundedSender<Bytes>, mpsc::UnboundedReceiver<Result<Bytes, Status>>) {
        let (requests_tx, requests) = mpsc::unbounded_channel();
        let (responses, responses_rx) = mpsc::unbounded_channel();
        let _ = self.streams.send(AdsStream { metadata, requests, responses });
        (requests_tx, responses_rx)
    }

    /// A client asks for a certificate.
    pub(crate) async fn sign(&self, metadata: MetadataMap, raw: Bytes) -> Result<Bytes, Status> {
        let request = IstioCertificateRequest::decode(raw.clone())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let signing = Signing { metadata, raw, request };
        let answer = (self.script.lock().unwrap_or_else(PoisonError::into_inner))(&signing);
        self.signings.lock().unwrap_or_else(PoisonError::into_inner).push(signing);
        match answer {
            Answer::Chain(cert_chain) => Ok(IstioCertificateResponse { cert_chain }.encode_to_vec().into()),
            Answer::Refuse(status) => Err(status),
            Answer::Silence => std::future::pending().await,
        }
    }
}
