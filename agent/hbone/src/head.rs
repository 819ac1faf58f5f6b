//! The head of a CONNECT and of its answer: pseudo headers and the four headers that HBONE uses, in ztunnel's order.
//!
//! The headers are labels for the peer's metrics and logs and prove nothing.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri, request, response};
use isthmus_model::Authority;
use isthmus_model::addr::BadAuthority;

use crate::error::OpenError;
use crate::status::ConnectStatus;
use crate::trace::TraceParent;

/// The head of a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The target.
    pub authority: Authority,
    /// Labels of the source workload, see [`crate::baggage`].
    pub baggage: Option<String>,
    /// The original client and the service it addressed, see [`crate::forwarded`].
    pub forwarded: Option<String>,
    /// The trace of the application's connection, see [`crate::trace`]. A malformed one is parsed as `None`.
    pub traceparent: Option<String>,
    /// The client's network; only on the inner CONNECT of double HBONE.
    pub forwarded_network: Option<String>,
}

/// The head of the answer to a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// Always 200 on a stream; any other status is [`OpenError::Status`].
    pub status: ConnectStatus,
    /// Labels of the destination workload.
    pub baggage: Option<String>,
}

/// A request that is no valid CONNECT. Its text names what was received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// The method is another one.
    #[error("expected method CONNECT, got {0}")]
    Method(String),
    /// The `:authority` is missing or no target.
    #[error(transparent)]
    Authority(#[from] BadAuthority),
}

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

// === impl BadHead ===

impl BadHead {
    /// The status to answer with.
    #[must_use]
    pub fn status(&self) -> ConnectStatus {
        ConnectStatus::BAD_REQUEST
    }
}

// === impl Head ===

impl Head {
    /// A head with no more than its target.
    #[must_use]
    pub fn new(authority: Authority) -> Self {
        Self { authority, baggage: None, forwarded: None, traceparent: None, forwarded_network: None }
    }

    pub(crate) fn to_request(&self) -> Result<Request<()>, OpenError> {
        let bad = || OpenError::Authority(self.authority.to_string());
        let uri = Uri::builder().authority(self.authority.to_string()).build().map_err(|_| bad())?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        push(headers, BAGGAGE, self.baggage.as_deref());
        push(headers, FORWARDED, self.forwarded.as_deref());
        push(headers, TRACEPARENT, self.traceparent.as_deref());
        push(headers, FORWARDED_NETWORK, self.forwarded_network.as_deref());
        Ok(request)
    }

    pub(crate) fn from_request(parts: &request::Parts) -> Result<Self, BadHead> {
        if parts.method != Method::CONNECT {
            return Err(BadHead::Method(parts.method.to_string()));
        }
        let authority = parts.uri.authority().map_or("", http::uri::Authority::as_str);
        Ok(Self {
            authority: authority.parse::<Authority>()?,
            baggage: merged(&parts.headers, &BAGGAGE),
            forwarded: first(&parts.headers, &FORWARDED),
            traceparent: first(&parts.headers, &TRACEPARENT)
                .filter(|text| TraceParent::parse(text).is_some()),
            forwarded_network: first(&parts.headers, &FORWARDED_NETWORK),
        })
    }
}

// === impl ResponseHead ===

impl ResponseHead {
    pub(crate) fn from_response(parts: &response::Parts) -> Self {
        Self { status: parts.status.as_u16().into(), baggage: merged(&parts.headers, &BAGGAGE) }
    }

    pub(crate) fn to_response(status: ConnectStatus, baggage: Option<&str>) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = status.to_http();
        push(response.headers_mut(), BAGGAGE, baggage);
        response
    }
}

/// Leaves out a label that is no valid header value: it must not fail the connection.
fn push(headers: &mut HeaderMap, name: HeaderName, value: Option<&str>) {
    let Some(value) = value else { return };
    match HeaderValue::from_str(value) {
        Ok(value) => {
            headers.append(name, value);
        }
        Err(_) => {
            tracing::debug!(header = %name, value, "header left out of CONNECT: not a valid header value")
        }
    }
}

fn first(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Joins several lines of a list header into one list (RFC 9110 §5.3).
fn merged(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}
