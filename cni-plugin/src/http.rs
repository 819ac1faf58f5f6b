//! HTTP/1.1 as the plugin needs it: one request per connection, one deadline for all of it, and an answer of bounded
//! size. The protocol is `ureq`'s; what connects (TCP, TLS, unix socket) is a connector of the caller's choice. Knows
//! neither the API server nor the node role.

mod tls;
mod unix;

use std::io;
use std::time::Duration;

use ureq::Agent;
use ureq::config::Config;
use ureq::http::Request;
use ureq::unversioned::resolver::{DefaultResolver, Resolver};
use ureq::unversioned::transport::{Connector, TcpConnector};

pub(crate) use tls::TlsConnector;
pub(crate) use unix::UnixConnector;

/// A client of one server.
pub(crate) struct Client {
    agent: Agent,
    deadline: Duration,
    /// Longest body of an answer, in bytes.
    max_body: u64,
}

/// What was answered; the status is not judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The whole body.
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The deadline passed.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server's name does not resolve.
    #[error("the server's name has no address")]
    NoAddress,
    /// The body is too long.
    #[error("the answer's body is longer than {0} bytes")]
    TooLong(u64),
    /// The body has a transfer coding that was not offered.
    #[error("unexpected transfer encoding {0:?}")]
    Coding(String),
    /// The request cannot be sent, or the answer is not HTTP/1.1.
    #[error("{0}")]
    Protocol(ureq::Error),
}

// === impl Client ===

impl Client {
    /// A client over TCP, with TLS where `tls` is given.
    pub(crate) fn tcp(tls: Option<TlsConnector>, deadline: Duration, max_body: u64) -> Self {
        let resolver = DefaultResolver::default();
        match tls {
            Some(tls) => {
                Self::new(().chain(TcpConnector::default()).chain(tls), resolver, deadline, max_body)
            }
            None => Self::new(().chain(TcpConnector::default()), resolver, deadline, max_body),
        }
    }

    /// A client of what listens on a unix socket.
    pub(crate) fn unix(connector: UnixConnector, deadline: Duration, max_body: u64) -> Self {
        Self::new(connector, unix::NoNames, deadline, max_body)
    }

    fn new(connector: impl Connector, resolver: impl Resolver, deadline: Duration, max_body: u64) -> Self {
        let config = Config::builder()
            .timeout_global(Some(deadline))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .accept("application/json")
            // The runtime's environment says nothing about how the API server is reached.
            .proxy(None)
            .build();
        Self { agent: Agent::with_parts(config, connector, resolver), deadline, max_body }
    }

    /// Reads `uri`, with a bearer token if there is one.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub(crate) fn get(&self, uri: &str, token: Option<&str>) -> Result<Response, HttpError> {
        let mut request = Request::get(uri).header("Connection", "close");
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|error| self.error(error.into()))?;
        self.finish(self.agent.run(request))
    }

    /// Sends JSON to `uri`.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub(crate) fn post(&self, uri: &str, json: Vec<u8>) -> Result<Response, HttpError> {
        let request = Request::post(uri)
            .header("Connection", "close")
            .header("Content-Type", "application/json")
            .body(json)
            .map_err(|error| self.error(error.into()))?;
        self.finish(self.agent.run(request))
    }

    fn finish(
        &self,
        answered: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Response, HttpError> {
        let mut answer = answered.map_err(|error| self.error(error))?;
        // `ureq` would return a body of any other coding undecoded.
        let coding = answer.headers().get("transfer-encoding");
        if let Some(other) = coding.filter(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked")) {
            return Err(HttpError::Coding(String::from_utf8_lossy(other.as_bytes()).into_owned()));
        }
        let body = answer.body_mut().with_config().limit(self.max_body).read_to_vec();
        let body = body.map_err(|error| self.error(error))?;
        Ok(Response { status: answer.status().as_u16(), body })
    }

    fn error(&self, error: ureq::Error) -> HttpError {
        match error {
            ureq::Error::Timeout(_) => HttpError::Timeout(self.deadline),
            ureq::Error::Io(error) => HttpError::Io(error),
            ureq::Error::HostNotFound => HttpError::NoAddress,
            ureq::Error::BodyExceedsLimit(limit) => HttpError::TooLong(limit),
            other => HttpError::Protocol(other),
        }
    }
}

#[cfg(test)]
mod tests;
