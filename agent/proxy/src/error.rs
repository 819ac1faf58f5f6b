//! Errors of a connection, and their mapping to response flags. Their texts are the access log's `error`: an operator
//! reads them beside the connection's addresses. Several are ztunnel's, for existing alerts and searches.

mod hello;

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_hbone::copy::CopyError;
use isthmus_hbone::handover::ResumeError;
use isthmus_hbone::pool::{ConnectFailure, PoolError, Stage};
use isthmus_hbone::{BadHead, OpenError, TlsError, TooManyTunnels, TunnelError};
use isthmus_identity::FetchError;
use isthmus_model::{Hostname, NetworkId, PolicyKey, SpiffeId, WorkloadUid};
use isthmus_state::route::DenyReason;
use isthmus_state::{GatewayRefusal, InboundError};
use isthmus_sys::socket::ConnectError;

pub use self::hello::HelloError;
pub(crate) use self::hello::MAX_CLIENT_HELLO;
use crate::host_resolver::HostLookupError;
use crate::types::{PodName, Refusal, ResponseFlag};

/// Why a connection was not established, or was closed with an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination is a port of the proxy itself: the connection would loop.
    #[error("attempted recursive call to ourselves: {0}")]
    Recursive(SocketAddr),
    /// The control plane has not described the local workload.
    #[error("failed to fetch information about local workload: {0}")]
    UnknownWorkload(PodName),
    /// Plaintext arrived for an address that the pod does not have.
    #[error("ip mismatch: {destination} is not an address of {pod}")]
    NotOurAddress {
        /// The original destination.
        destination: SocketAddr,
        /// The pod.
        pod: PodName,
    },
    /// There is no route to the destination.
    #[error("{0}")]
    Unroutable(DenyReason),
    /// The destination workload has a hostname in place of addresses, and it does not resolve.
    #[error("workload {workload} has no address and its hostname {hostname} does not resolve: {cause}")]
    Lookup {
        /// The workload.
        workload: WorkloadUid,
        /// Its hostname.
        hostname: Hostname,
        /// The resolver's error.
        cause: HostLookupError,
    },
    /// The authority of a CONNECT is not an address or service port of this pod.
    #[error("{0}")]
    Inbound(#[from] InboundError),
    /// A malformed CONNECT: the peer's mistake.
    #[error("{0}")]
    BadHead(#[from] BadHead),
    /// A CONNECT to an address reached the gateway: the peer took it for an agent.
    #[error("the gateway forwards to services by name, not to {0}")]
    NotByName(SocketAddr),
    /// The TCP connect failed.
    #[error("connection failed: {0}")]
    Connect(#[source] ConnectError),
    /// The TCP connect to an HBONE port timed out.
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port {}: {}", .0.port(), .0)]
    HboneTimeout(SocketAddr),
    /// The CA refused a certificate for the local identity, or cannot be reached.
    #[error("{0}")]
    Identity(#[from] FetchError),
    /// The first certificate of the local identity was not issued in time.
    #[error("no certificate for {identity} within {after:?}: the CA has not signed it yet")]
    NoCertificate {
        /// The local identity.
        identity: SpiffeId,
        /// The deadline.
        after: Duration,
    },
    /// The TLS handshake failed.
    #[error("tls handshake error: {0}")]
    Tls(#[from] TlsError),
    /// All handshake slots were taken, and a connection of another client needed one, or this handshake was the oldest.
    #[error(
        "tls handshake error: evicted: {limit} handshakes in progress and this one exceeded {grace:?}, or its client its share"
    )]
    HandshakeEvicted {
        /// The number of slots.
        limit: usize,
        /// The age from which a handshake of a client within its share may be evicted.
        grace: Duration,
    },
    /// All handshake slots are taken, and too many connections of this client wait for one.
    #[error(
        "tls handshake error: refused: {limit} handshakes in progress and the client has the most that wait"
    )]
    HandshakeRefused {
        /// The number of slots.
        limit: usize,
    },
    /// The pod holds as many connections as it may have beside the others of its node.
    #[error("the pod holds its share of file descriptors, see ISTHMUS_POD_DESCRIPTOR_BUDGET")]
    NoDescriptor,
    /// The client's certificate has no SPIFFE identity. The verifier has refused such a client before; this keeps the
    /// invariant should it ever not.
    #[error("tls handshake error: the peer's certificate has no SPIFFE identity")]
    NoPeerIdentity,
    /// The peer has as many tunnels as it may have.
    #[error("{0}")]
    TooManyTunnels(#[from] TooManyTunnels),
    /// The HTTP/2 handshake failed.
    #[error("http2 handshake error: {0}")]
    Http2(#[from] TunnelError),
    /// The peer refused the CONNECT, or the tunnel failed before its answer.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The peer did not answer the CONNECT in time.
    #[error("connection failed: the peer did not answer CONNECT within {0:?}")]
    NoAnswer(Duration),
    /// The client reset its connection or stream while the upstream was being connected.
    #[error("the client reset the connection before it was established")]
    ClientReset,
    /// Policy denied the connection.
    #[error("connection closed due to policy rejection: {0}")]
    Denied(#[source] Refusal),
    /// A policy change denied a connection that was open.
    #[error("connection closed due to policy change: {0}")]
    PolicyChanged(#[source] Refusal),
    /// The process or the pod's proxy stopped while the connection was open.
    #[error("connection closed due to connection drain")]
    Drained,
    /// The certificate of the tunnel's peer was revoked while the connection was open.
    #[error("{}", isthmus_hbone::PeerRevoked)]
    Revoked,
    /// Reading or writing either side failed while bytes were copied.
    #[error("{0}")]
    Copy(#[source] CopyError),
    /// The bytes that precede the payload, a PROXY protocol header or a ClientHello that was read ahead, could not be
    /// written.
    #[error("cannot write the PROXY header or ClientHello to the upstream: {0}")]
    Preface(#[source] std::io::Error),
    /// It was handed over, and cannot go on here.
    #[error("{0}")]
    NotResumed(#[source] ResumeError),
    /// The gateway does not forward to this authority.
    #[error("{0}")]
    Gateway(#[from] GatewayRefusal),
    /// The service has no virtual address on the gateway's network.
    #[error("service {hostname} has no virtual address on network {network}")]
    NoVip {
        /// The service.
        hostname: Hostname,
        /// The network.
        network: NetworkId,
    },
    /// No backend of the route of a plain TCP listener, on this port, can be used.
    #[error("no usable backend behind port {0} of the gateway")]
    NoBackend(u16),
    /// The connection to an SNI listener did not start with a TLS ClientHello, or its server name has no route.
    #[error("{0}")]
    Hello(#[from] HelloError),
    /// The tunnel could not be dialled. All connections that waited for the same dial get this.
    #[error("{0}")]
    Dial(#[source] ConnectFailure),
    /// The pool had no tunnel with a free stream in time.
    #[error("connection failed: no HBONE tunnel to the peer within {0:?}")]
    NoTunnel(Duration),
}

impl From<PoolError> for Error {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Connect(failure) => Self::Dial(failure),
            PoolError::Deadline(after) => Self::NoTunnel(after),
            PoolError::Open(error) => Self::Open(error),
        }
    }
}

impl Error {
    /// The response flag of a connection that ended with this error.
    #[must_use]
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(_) | Self::PolicyChanged(_) => ResponseFlag::Deny,
            Self::Tls(_)
            | Self::HandshakeEvicted { .. }
            | Self::HandshakeRefused { .. }
            | Self::NoPeerIdentity => ResponseFlag::TlsFailure,
            Self::Revoked => ResponseFlag::CertRevoked,
            Self::Http2(_) | Self::TooManyTunnels(_) => ResponseFlag::H2HandshakeFailure,
            Self::HboneTimeout(_) => ResponseFlag::NetworkPolicy,
            Self::Identity(_) | Self::NoCertificate { .. } => ResponseFlag::IdentityError,
            Self::Dial(failure) => match failure.stage {
                Stage::Identity => ResponseFlag::IdentityError,
                Stage::Timeout => ResponseFlag::NetworkPolicy,
                Stage::Connect => ResponseFlag::Connect,
                Stage::Tls => ResponseFlag::TlsFailure,
                Stage::Handshake => ResponseFlag::H2HandshakeFailure,
            },
            Self::Recursive(_)
            | Self::UnknownWorkload(_)
            | Self::NotOurAddress { .. }
            | Self::Unroutable(_)
            | Self::Lookup { .. }
            | Self::BadHead(_)
            | Self::NotByName(_)
            | Self::Connect(_)
            | Self::Open(_)
            | Self::NoAnswer(_)
            | Self::NoTunnel(_)
            | Self::Inbound(_)
            | Self::NoDescriptor
            | Self::ClientReset
            | Self::Drained
            | Self::Copy(_)
            | Self::Preface(_)
            | Self::NotResumed(_)
            | Self::Gateway(_)
            | Self::NoVip { .. }
            | Self::NoBackend(_)
            | Self::Hello(_) => ResponseFlag::Connect,
        }
    }

    /// The policy that denied the connection.
    #[must_use]
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Denied(refusal) | Self::PolicyChanged(refusal) => refusal.policy.as_ref(),
            _ => None,
        }
    }

    /// The stage of a tunnel's dial that this error belongs to.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Identity(_) | Self::NoCertificate { .. } => Stage::Identity,
            Self::HboneTimeout(_) => Stage::Timeout,
            Self::Tls(_) => Stage::Tls,
            Self::Http2(_) => Stage::Handshake,
            _ => Stage::Connect,
        }
    }

    /// A failed TCP connect to an HBONE port: a timeout there has its own text and flag.
    pub(crate) fn hbone_dial(error: ConnectError) -> Self {
        match error {
            ConnectError::Timeout { to, .. } => Self::HboneTimeout(to),
            other => Self::Connect(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_hbone::ConnectStatus;

    use super::*;

    #[test]
    fn every_kind_of_failure_has_its_flag() {
        let to: SocketAddr = "10.0.0.1:15008".parse().unwrap();
        let after = Duration::from_secs(10);
        let silence = || ConnectError::Timeout { to, after };
        let dial = |stage| Error::Dial(ConnectFailure::new(stage, Error::NoAnswer(after)));
        let refusal = || Refusal { policy: Some("ns/p".into()), reason: "no".into() };
        let table = [
            (Error::Denied(refusal()), ResponseFlag::Deny),
            (Error::PolicyChanged(refusal()), ResponseFlag::Deny),
            (Error::Revoked, ResponseFlag::CertRevoked),
            (Error::Connect(silence()), ResponseFlag::Connect),
            (Error::Open(OpenError::Status(ConnectStatus::UNAUTHORIZED)), ResponseFlag::Connect),
            (Error::Drained, ResponseFlag::Connect),
            (Error::Tls(TlsError::Timeout(after)), ResponseFlag::TlsFailure),
            (Error::NoPeerIdentity, ResponseFlag::TlsFailure),
            (Error::HandshakeEvicted { limit: 256, grace: after }, ResponseFlag::TlsFailure),
            (Error::HandshakeRefused { limit: 256 }, ResponseFlag::TlsFailure),
            (Error::NoDescriptor, ResponseFlag::Connect),
            (Error::Http2(TunnelError::HandshakeTimeout(after)), ResponseFlag::H2HandshakeFailure),
            (Error::hbone_dial(silence()), ResponseFlag::NetworkPolicy),
            (dial(Stage::Identity), ResponseFlag::IdentityError),
            (dial(Stage::Timeout), ResponseFlag::NetworkPolicy),
            (dial(Stage::Connect), ResponseFlag::Connect),
            (dial(Stage::Tls), ResponseFlag::TlsFailure),
            (dial(Stage::Handshake), ResponseFlag::H2HandshakeFailure),
        ];
        for (error, flag) in table {
            assert_eq!(error.flag(), flag, "{error}");
        }
        assert_eq!(Error::Denied(refusal()).policy().map(PolicyKey::as_str), Some("ns/p"));
        assert_eq!(
            Error::hbone_dial(silence()).to_string(),
            "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: 10.0.0.1:15008"
        );
    }

    #[test]
    fn a_failed_dial_keeps_its_flag_through_the_pool() {
        let to = "10.0.0.1:15008".parse().unwrap();
        let after = Duration::from_secs(10);
        for error in [
            Error::HboneTimeout(to),
            Error::Tls(TlsError::Timeout(after)),
            Error::Http2(TunnelError::HandshakeTimeout(after)),
            Error::Connect(ConnectError::Refused { to }),
        ] {
            let flag = error.flag();
            let pooled = Error::from(PoolError::Connect(ConnectFailure::new(error.stage(), error)));
            assert_eq!(pooled.flag(), flag, "{pooled}");
        }
    }
}
