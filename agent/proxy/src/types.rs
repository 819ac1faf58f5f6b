//! The crate's vocabulary: the small values that more than one room speaks of. No behaviour beyond naming itself.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use isthmus_model::{PodRef, PolicyKey, SpiffeId, Text};
use isthmus_state::Denied;

/// Which end of a connection is the local workload: the client, outbound, or the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

/// Who reports a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reporter {
    /// The client's side.
    #[default]
    Source,
    /// The server's side.
    Destination,
    /// A gateway in between. A value of its own, so that nobody's sums count the connection twice.
    Gateway,
}

/// How a connection ended, as `response_flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ResponseFlag {
    /// Well, or not yet.
    #[default]
    None,
    /// A policy refused it.
    Deny,
    /// The far end was not reached, or answered with something else than 200.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake failed.
    H2HandshakeFailure,
    /// Nobody answered on the HBONE port: most often a NetworkPolicy.
    NetworkPolicy,
    /// There is no certificate of our own.
    IdentityError,
    /// The peer's certificate was revoked while the connection was open.
    CertRevoked,
}

/// How a connection is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Plain TCP.
    Tcp,
    /// One tunnel.
    Hbone,
    /// A tunnel in a tunnel.
    DoubleHbone,
}

/// Connections may share a tunnel when all of this is the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    /// Whose certificate we show.
    pub(crate) source: SpiffeId,
    /// Whom we expect; any of them will do.
    pub(crate) destinations: Vec<SpiffeId>,
    /// Where.
    pub(crate) address: SocketAddr,
    /// The client's address. Tunnels are not shared between clients of different addresses, so that what the far end
    /// sees of the TCP connection is one client's.
    pub(crate) source_ip: IpAddr,
}

/// A policy's verdict in words, with the policy when one is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The policy that said no; `None` when no policy said yes.
    pub policy: Option<PolicyKey>,
    /// In words.
    pub reason: String,
}

/// A pod as error texts name it: `<service account>.<namespace> (<name>)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName(Text);

// === impl Direction ===

impl Direction {
    /// As the log has it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

// === impl Reporter ===

impl Reporter {
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
    /// As the config dump names it.
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
