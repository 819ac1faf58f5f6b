//! The channel to the control plane, for xDS and CA alike: TLS 1.3 that verifies the server, a bearer token that is read
//! for each request, and headers.
//!
//! No other module of this crate knows TLS types. Roots are read for every connection and while one is open: a rotated
//! root needs no restart, and no reconnect as long as the new roots trust the server, too.

mod connect;
mod roots;
mod token;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use isthmus_identity::KeyExchange;
use isthmus_model::ClusterId;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap};
use tonic::transport::{Channel, Endpoint};

pub use connect::ConnectError;
pub(crate) use connect::DistrustedServer;
pub use roots::{RootError, RootSource};
pub use token::{TokenError, TokenSource};

/// Timeout of name resolution, TCP and TLS together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of HTTP/2 pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Timeout of their acknowledgement.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// One server of the control plane: its address, what verifies it, and the credentials that the client presents.
#[derive(Clone)]
pub struct Server {
    /// `https://host:port`, or `http://host:port` for no TLS.
    pub address: String,
    /// Roots that its certificate must chain to.
    pub roots: RootSource,
    /// The bearer token.
    pub token: TokenSource,
    /// Sent as `clusterid`.
    pub cluster_id: ClusterId,
    /// Headers of every request; values may be secrets.
    pub headers: Vec<(String, String)>,
    /// DNS name that its certificate may have instead of the host of `address`.
    pub alt_hostname: Option<String>,
    /// TLS key exchange.
    pub key_exchange: KeyExchange,
}

/// Opens connections to a server.
pub(crate) struct Dialer(connect::Connector);

/// A setting that can never work; a missing file is not one.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address is not the URL of a server.
    #[error("address {address:?}: {reason}")]
    Address {
        /// As configured.
        address: String,
        /// Why.
        reason: String,
    },
    /// The roots can never be read.
    #[error("roots: {0}")]
    Roots(#[from] RootError),
    /// The alternative hostname is not a hostname.
    #[error("alternative hostname {0:?} is not a valid DNS name")]
    AltHostname(String),
    /// A header that cannot be sent. Its value is not shown, since it may be a secret.
    #[error(
        "header {0:?} is not valid gRPC metadata: its name or its value has characters that are not allowed"
    )]
    Header(String),
}

// === impl Server ===

impl Server {
    /// Checks the settings without touching the network. A missing file is no error: it may appear later.
    ///
    /// # Errors
    /// The first such setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.uri()?;
        self.roots.check()?;
        if let Some(name) = &self.alt_hostname {
            connect::server_name(name).map_err(|_| ConfigError::AltHostname(name.clone()))?;
        }
        self.add_headers(&mut MetadataMap::new())
    }

    pub(crate) fn uri(&self) -> Result<Uri, ConfigError> {
        let bad =
            |reason: &str| ConfigError::Address { address: self.address.clone(), reason: reason.to_owned() };
        let uri: Uri =
            self.address.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad("must start with https:// or http://"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(bad("has no host"));
        }
        Ok(uri)
    }

    fn endpoint(&self) -> Result<Endpoint, ConfigError> {
        let endpoint = Endpoint::from(self.uri()?);
        Ok(endpoint
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true))
    }

    /// Adds token, cluster and headers to a request. The token is read each time, since the kubelet rotates it.
    pub(crate) async fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), AuthorizeError> {
        self.add_headers(metadata)?;
        if let Some(token) = self.token.read().await? {
            metadata.insert("authorization", token);
        }
        Ok(())
    }

    fn add_headers(&self, metadata: &mut MetadataMap) -> Result<(), ConfigError> {
        let cluster = ("clusterid".to_owned(), self.cluster_id.to_string());
        for (name, value) in std::iter::once(&cluster).chain(&self.headers) {
            let bad = || ConfigError::Header(name.clone());
            let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| bad())?;
            metadata.insert(key, value.parse().map_err(|_| bad())?);
        }
        Ok(())
    }
}

// === impl Dialer ===

impl Dialer {
    pub(crate) fn new(server: Server) -> Self {
        Self(connect::Connector::new(Arc::new(server), CONNECT_TIMEOUT))
    }

    pub(crate) fn server(&self) -> &Server {
        self.0.server()
    }

    /// A channel that connects on first use, and reconnects after the connection was lost.
    pub(crate) fn channel(&self) -> Result<Channel, ConfigError> {
        Ok(self.server().endpoint()?.connect_with_connector_lazy(self.0.clone()))
    }

    /// A channel over a fresh connection.
    pub(crate) async fn connect(&self) -> Result<Channel, DialError> {
        let endpoint = self.server().endpoint()?;
        Ok(endpoint.connect_with_connector(self.0.clone()).await?)
    }

    /// Verifies the certificate of the last connection's server against the current roots.
    ///
    /// # Errors
    /// When they do not trust it: the connection should be replaced.
    pub(crate) async fn recheck(&self) -> Result<(), DistrustedServer> {
        self.0.recheck().await
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dialer").field(self.server()).finish()
    }
}

impl fmt::Debug for Server {
    /// Names of headers only: their values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Server")
            .field("address", &self.address)
            .field("roots", &self.roots)
            .field("token", &self.token)
            .field("cluster_id", &self.cluster_id)
            .field("headers", &headers)
            .field("alt_hostname", &self.alt_hostname)
            .finish()
    }
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{}", cause(.0))]
    Transport(#[from] tonic::transport::Error),
}

/// Why a request has no credentials.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorizeError {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

type Error = dyn StdError + 'static;

/// An error and its causes, outermost first.
fn causes(error: &Error) -> impl Iterator<Item = &Error> {
    std::iter::successors(Some(error), |error: &&Error| StdError::source(*error))
}

/// The first error of this type among an error and its causes.
pub(crate) fn find<T: StdError + 'static>(error: &Error) -> Option<&T> {
    causes(error).find_map(|error| error.downcast_ref())
}

/// The cause of a channel's error: the connector's own error if there is one, otherwise the innermost.
pub(crate) fn cause(error: &Error) -> String {
    let ours = find::<ConnectError>(error).map(ToString::to_string);
    ours.unwrap_or_else(|| causes(error).last().unwrap_or(error).to_string())
}

/// A gRPC status in one line: the cause when the channel failed, otherwise what the server sent.
pub(crate) fn status_text(status: &tonic::Status) -> String {
    if StdError::source(status).is_some() {
        return cause(status);
    }
    format!("{:?}: {}", status.code(), message(status))
}

/// Longest text of a server that is logged, in bytes. gRPC allows as much as fits into a header block.
const LONGEST: usize = 512;

/// What the server says in a status, shortened.
pub(crate) fn message(status: &tonic::Status) -> &str {
    let text = status.message();
    let end = (0..=LONGEST.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests;
