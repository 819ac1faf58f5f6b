//! The head of a CONNECT and of its answer: pseudo headers and the four headers HBONE uses, in the field's order.
//!
//! The headers are labels for the other end's metrics and log; nothing here is proof of anything.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, request, response};
use isthmus_model::Authority;

use crate::OpenError;
use crate::trace::TraceParent;

/// What a CONNECT asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The target.
    pub authority: Authority,
    /// Labels of the client's workload, see [`crate::baggage`].
    pub baggage: Option<String>,
    /// The original client and the service it meant, see [`crate::forwarded`].
    pub forwarded: Option<String>,
    /// The trace of the user's connection, see [`crate::trace`]. A malformed one is received as none.
    pub traceparent: Option<String>,
    /// The client's network; only on the inner CONNECT of a double tunnel.
    pub forwarded_network: Option<String>,
}

/// What a CONNECT is answered with when it is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// Always 200 on a stream; any other status is [`OpenError::Status`].
    pub status: u16,
    /// Labels of the serving workload.
    pub baggage: Option<String>,
}

/// A request that is no CONNECT we understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BadHead {
    /// What to answer: 400.
    pub status: u16,
    /// What is wrong with it, naming what was received.
    pub text: String,
}

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

// === impl Head ===

impl Head {
    /// A head with nothing but its target.
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
        let bad = |text: String| BadHead { status: 400, text };
        if parts.method != Method::CONNECT {
            return Err(bad(format!("expected method CONNECT, got {}", parts.method)));
        }
        let text = parts.uri.authority().map_or("", http::uri::Authority::as_str);
        let authority = text.parse().map_err(|error| bad(format!("{error}")))?;
        Ok(Self {
            authority,
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
        Self { status: parts.status.as_u16(), baggage: merged(&parts.headers, &BAGGAGE) }
    }

    pub(crate) fn to_response(status: u16, baggage: Option<&str>) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        push(response.headers_mut(), BAGGAGE, baggage);
        response
    }
}

/// A label that cannot be a header's value is left out: it must not cost the connection.
fn push(headers: &mut HeaderMap, name: HeaderName, value: Option<&str>) {
    let Some(value) = value else { return };
    match HeaderValue::from_str(value) {
        Ok(value) => {
            headers.append(name, value);
        }
        Err(_) => tracing::debug!(%name, value, "left out: not a header value"),
    }
}

fn first(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// Several lines of a list header are one list.
fn merged(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}
