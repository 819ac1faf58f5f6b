//! Small value types that several modules of the crate share. No behaviour beyond formatting and conversion.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use isthmus_model::{PodRef, PolicyKey, SpiffeId, Text};
use isthmus_state::Denied;

/// Direction of a connection as seen by the local workload: its client, outbound, or its server, inbound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

/// Which proxy on the path reports a connection: the metric label `reporter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reporter {
    /// The client's proxy.
    #[default]
    Source,
    /// The server's proxy.
    Destination,
    /// A gateway in between. A value of its own: dashboards sum over `source` or `destination`, and the same connection
    /// must not appear there twice.
    Gateway,
}

/// Outcome of a connection: the metric label `response_flags`. Values are ztunnel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResponseFlag {
    /// Closed without error, or still open.
    #[default]
    None,
    /// An authorization policy denied it.
    Deny,
    /// The upstream was not reached, or answered CONNECT with a status other than 200. Also every error that has no
    /// flag of its own.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake failed.
    H2HandshakeFailure,
    /// No answer to the SYN to the HBONE port: most often a NetworkPolicy drops it.
    NetworkPolicy,
    /// There is no certificate for the local identity.
    IdentityError,
    /// The peer's certificate was revoked while the connection was open.
    CertRevoked,
}

/// Transport of a connection between proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Plain TCP.
    Tcp,
    /// A stream of an HBONE tunnel.
    Hbone,
    /// A stream of an inner HBONE tunnel, which a network gateway forwards inside of an outer one.
    DoubleHbone,
}

/// Key of the tunnel pool: connections share a tunnel only if all of this is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// Identity of the client certificate.
    pub(crate) source: SpiffeId,
    /// Identities that are accepted of the server; any one of them.
    pub(crate) destinations: Vec<SpiffeId>,
    /// The peer's HBONE address.
    pub(crate) address: SocketAddr,
    /// The client's address. Clients with different addresses do not share a tunnel: the peer attributes all streams
    /// of a TCP connection to its source address.
    pub(crate) source_ip: IpAddr,
}

/// A denial by authorization policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The policy that denied; `None` when ALLOW policies exist and none matched.
    pub policy: Option<PolicyKey>,
    /// Text for the log.
    pub reason: String,
}

/// A pod as error texts name it: `<service account>.<namespace> (<name>)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName(Text);

// === impl Direction ===

impl Direction {
    /// The value of the access log's `direction`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

// === impl Reporter ===

impl Reporter {
    /// All of them, in the order of their numbers between two agents.
    pub(crate) const ALL: [Self; 3] = [Self::Source, Self::Destination, Self::Gateway];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Gateway => "gateway",
        }
    }
}

// === impl ResponseFlag ===

impl ResponseFlag {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

// === impl Carrier ===

impl Carrier {
    /// All of them, in the order of their numbers between two agents.
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::Hbone, Self::DoubleHbone];

    /// The value of the config dump's `protocol`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Hbone => "HBONE",
            Self::DoubleHbone => "DOUBLEHBONE",
        }
    }
}

// === impl Refusal ===

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        Self { reason: denied.to_string(), policy: denied.policy }
    }
}

// === impl PodName ===

impl From<&PodRef> for PodName {
    fn from(pod: &PodRef) -> Self {
        Self(format!("{}.{} ({})", pod.service_account, pod.namespace, pod.name).into())
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
