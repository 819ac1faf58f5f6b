//! The head of a CONNECT and of its answer: pseudo headers and the four headers that HBONE uses, in ztunnel's order.
//!
//! The headers are labels for the peer's metrics and logs and prove nothing.

use isthmus_http2::{self as http2, Fields};
use isthmus_model::Authority;
use isthmus_model::addr::BadAuthority;

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
    /// Always 200 on a stream; any other status is [`crate::OpenError::Status`].
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

const BAGGAGE: &str = "baggage";
const FORWARDED: &str = "forwarded";
const TRACEPARENT: &str = "traceparent";
const FORWARDED_NETWORK: &str = "x-forwarded-network";

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

    /// The fields of the request behind its pseudo headers.
    pub(crate) fn fields(&self) -> Vec<(&'static str, &str)> {
        let all = [
            (BAGGAGE, self.baggage.as_deref()),
            (FORWARDED, self.forwarded.as_deref()),
            (TRACEPARENT, self.traceparent.as_deref()),
            (FORWARDED_NETWORK, self.forwarded_network.as_deref()),
        ];
        all.into_iter().filter_map(|(name, value)| valid(name, value?)).collect()
    }

    pub(crate) fn from_request(head: &http2::RequestHead) -> Result<Self, BadHead> {
        if !head.is_connect() {
            return Err(BadHead::Method(head.method().to_owned()));
        }
        let authority = head.authority().unwrap_or_default();
        Ok(Self {
            authority: authority.parse::<Authority>()?,
            baggage: merged(&head.fields, BAGGAGE),
            forwarded: first(&head.fields, FORWARDED),
            traceparent: first(&head.fields, TRACEPARENT).filter(|text| TraceParent::parse(text).is_some()),
            forwarded_network: first(&head.fields, FORWARDED_NETWORK),
        })
    }
}

// === impl ResponseHead ===

impl ResponseHead {
    pub(crate) fn from_response(head: &http2::ResponseHead) -> Self {
        Self { status: head.status.into(), baggage: merged(&head.fields, BAGGAGE) }
    }

    /// The fields of an answer behind its status.
    pub(crate) fn answer_fields(baggage: Option<&str>) -> Option<(&'static str, &str)> {
        valid(BAGGAGE, baggage?)
    }
}

/// Leaves out a label that is no valid header value: it must not fail the connection.
fn valid<'a>(name: &'static str, value: &'a str) -> Option<(&'static str, &'a str)> {
    // What the engine accepts of others is more than what it should send: no bytes outside of ASCII.
    let is_valid = http2::is_valid_value(value.as_bytes()) && value.is_ascii();
    if !is_valid {
        tracing::debug!(header = name, value, "header left out of CONNECT: not a valid header value");
    }
    is_valid.then_some((name, value))
}

fn first(fields: &Fields, name: &str) -> Option<String> {
    text(fields.get(name)?).map(str::to_owned)
}

/// Joins several lines of a list header into one list (RFC 9110 §5.3).
fn merged(fields: &Fields, name: &str) -> Option<String> {
    let lines: Vec<&str> = fields.all(name).filter_map(text).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// Visible ASCII, the only text that these headers have.
fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().filter(|text| text.is_ascii())
}
