//! One HTTP/1.1 connection after another to an API server: an idle one is used again, a stale one is replaced, and a
//! watch gets one of its own.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use isthmus_rt::task::Tasks;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use super::Error;
use super::kubeconfig::{Kubeconfig, Token};
use crate::manifest::object;
use crate::tls;

/// For connecting, and for a whole answer that is no watch.
const DEADLINE: Duration = Duration::from_secs(15);

/// How to reach one API server, and the connection that is idle.
pub(super) struct Transport {
    server: String,
    address: String,
    tls: TlsConnector,
    name: ServerName<'static>,
    token: Token,
    idle: Mutex<Option<SendRequest<Full<Bytes>>>>,
    connections: Tasks,
}

// === impl Transport ===

impl Transport {
    pub(super) fn new(config: Kubeconfig) -> Result<Self, Error> {
        let server = config.server.trim_end_matches('/').to_owned();
        let bad = |reason: String| Error::Kubeconfig(format!("server {server:?}: {reason}"));
        let uri: Uri = server.parse().map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad("is not an https URL".to_owned()));
        }
        let host = uri.host().unwrap_or_default();
        let address = format!("{host}:{}", uri.port_u16().unwrap_or(443));
        let name =
            config.tls_server_name.as_deref().unwrap_or_else(|| host.trim_matches(['[', ']'])).to_owned();
        let name = ServerName::try_from(name).map_err(|error| bad(error.to_string()))?;
        let tls =
            tls::client("the API server's CA", &config.ca_pem).map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            address,
            tls: TlsConnector::from(tls),
            name,
            token: config.token,
            idle: Mutex::new(None),
            connections: Tasks::new("kubeclient"),
            server,
        })
    }

    /// A request with a JSON answer.
    pub(super) async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, Error> {
        let request = self.request(&method, path, body).await?;
        let run = async {
            let mut sender = self.idle.lock().await.take();
            let response = self.send(&mut sender, request).await?;
            let status = response.status();
            let bytes = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
            *self.idle.lock().await = sender;
            Ok((status, bytes))
        };
        let outcome = tokio::time::timeout(DEADLINE, run).await;
        let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")));
        let (status, bytes) = outcome.map_err(|reason| self.transport(&method, path, reason))?;
        answer(&method, path, status, &bytes)
    }

    /// A request whose answer is read piece by piece, on a connection of its own.
    pub(super) async fn stream(&self, path: &str) -> Result<Incoming, Error> {
        let request = self.request(&Method::GET, path, None).await?;
        let fail = |reason| self.transport(&Method::GET, path, reason);
        let response = tokio::time::timeout(DEADLINE, self.send(&mut None, request)).await;
        let response = response.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")));
        let response = response.map_err(fail)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response.into_body());
        }
        let bytes = response.into_body().collect().await.map_err(|error| fail(error.to_string()))?.to_bytes();
        Err(answer(&Method::GET, path, status, &bytes).err().unwrap_or_else(|| fail(status.to_string())))
    }

    async fn request(
        &self,
        method: &Method,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", &self.address)
            .header("accept", "application/json")
            .header("authorization", format!("Bearer {}", self.token.current().await?));
        if let Some((kind, _)) = body {
            request = request.header("content-type", kind);
        }
        let bytes = body.map_or_else(Bytes::new, |(_, value)| Bytes::from(value.to_string()));
        request.body(Full::new(bytes)).map_err(|error| self.transport(method, path, error.to_string()))
    }

    /// Sends on `sender`, or on a new connection when there is none or it has gone stale; `sender` is what was used.
    async fn send(
        &self,
        sender: &mut Option<SendRequest<Full<Bytes>>>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, String> {
        if let Some(idle) = sender.as_mut().filter(|idle| !idle.is_closed()) {
            match idle.try_send_request(request).await {
                Ok(response) => return Ok(response),
                // The server closed the idle connection before the request left: nothing was done yet.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(error.error().to_string()),
                },
            }
        }
        let fresh = sender.insert(self.connect().await?);
        fresh.send_request(request).await.map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let tcp = TcpStream::connect(&self.address).await.map_err(|error| format!("connect: {error}"))?;
        let _ = tcp.set_nodelay(true);
        let tls = self.tls.connect(self.name.clone(), tcp).await.map_err(|error| format!("TLS: {error}"))?;
        let (sender, connection) = handshake(TokioIo::new(tls)).await.map_err(|error| error.to_string())?;
        self.connections.spawn("connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the API server ended");
            }
        });
        Ok(sender)
    }

    pub(super) fn transport(&self, method: &Method, path: &str, reason: String) -> Error {
        Error::Transport {
            method: method.clone(),
            server: self.server.clone(),
            path: path.to_owned(),
            reason,
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("server", &self.server).finish_non_exhaustive()
    }
}

/// The object of a good answer; a bad one's Kubernetes Status as an error.
fn answer(method: &Method, path: &str, status: StatusCode, bytes: &Bytes) -> Result<Value, Error> {
    let (method, path) = (method.clone(), path.to_owned());
    let parsed: Result<Value, _> = serde_json::from_slice(bytes);
    if !status.is_success() {
        let object = parsed.unwrap_or_default();
        let message = match object::text(&object, "/message") {
            "" => String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned(),
            message => message.to_owned(),
        };
        let reason = object::text(&object, "/reason").to_owned();
        return Err(Error::Status { method, path, status, reason, message });
    }
    parsed.map_err(|error| Error::Body { method, path, reason: error.to_string() })
}
