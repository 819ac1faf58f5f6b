//! Why a connection of the data plane was refused or ended badly, and the one place that maps it to a response flag.

mod hello;

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_hbone::copy::CopyError;
use isthmus_hbone::pool::{ConnectFailure, PoolError, Stage};
use isthmus_hbone::{OpenError, TlsError, TunnelError};
use isthmus_identity::FetchError;
use isthmus_model::{Hostname, NetworkId, PolicyKey, SpiffeId, WorkloadUid};
use isthmus_state::route::DenyReason;
use isthmus_state::{GatewayRefusal, InboundError};
use isthmus_sys::socket::ConnectError;

pub use self::hello::HelloError;
pub(crate) use self::hello::MAX_CLIENT_HELLO;
use crate::host_resolver::HostLookupError;
use crate::types::{PodName, Refusal, ResponseFlag};

/// Why a connection did not come about, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination is ourselves: the connection would go round for ever.
    #[error("attempted recursive call to ourselves: {0}")]
    Recursive(SocketAddr),
    /// The control plane has not told of the pod.
    #[error("failed to fetch information about local workload: {0}")]
    UnknownWorkload(PodName),
    /// Plaintext arrived for an address that is not the pod's.
    #[error("ip mismatch: {destination} is not an address of {pod}")]
    NotOurAddress {
        /// Where the connection was going.
        destination: SocketAddr,
        /// The pod.
        pod: PodName,
    },
    /// There is no route to the destination.
    #[error("{0}")]
    Unroutable(DenyReason),
    /// The only thing known of the destination is a name, and that has no address.
    #[error("workload {workload} is known by hostname {hostname} only, which has no address: {cause}")]
    Lookup {
        /// The workload.
        workload: WorkloadUid,
        /// Its name.
        hostname: Hostname,
        /// Why it has none.
        cause: HostLookupError,
    },
    /// A CONNECT is not for this pod, or for no port of it.
    #[error("{0}")]
    Inbound(#[from] InboundError),
    /// A request that makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The TCP connection could not be made.
    #[error("connection failed: {0}")]
    Connect(#[source] ConnectError),
    /// Nobody answers on the HBONE port.
    #[error("connection timed out, maybe a NetworkPolicy is blocking HBONE port {}: {}", .0.port(), .0)]
    HboneTimeout(SocketAddr),
    /// We have no certificate to show.
    #[error("{0}")]
    Identity(#[from] FetchError),
    /// We have no certificate to show, yet.
    #[error("no certificate for {identity} within {after:?}")]
    NoCertificate {
        /// Whose.
        identity: SpiffeId,
        /// How long was waited.
        after: Duration,
    },
    /// The TLS handshake failed.
    #[error("tls handshake error: {0}")]
    Tls(#[from] TlsError),
    /// Too many clients were being set up, and this one took the longest.
    #[error("tls handshake error: given up after {0:?} for others that wait")]
    Crowded(Duration),
    /// The client showed no identity of the mesh. The verifier refuses such a client, so this is a second lock.
    #[error("tls handshake error: the peer proved no SPIFFE identity")]
    NoPeerIdentity,
    /// The HTTP/2 handshake failed.
    #[error("http2 handshake error: {0}")]
    Http2(#[from] TunnelError),
    /// A stream could not be opened in a tunnel.
    #[error("{0}")]
    Open(#[from] OpenError),
    /// The far end did not answer the CONNECT.
    #[error("connection failed: no answer to CONNECT within {0:?}")]
    NoAnswer(Duration),
    /// The client no longer waits for an answer.
    #[error("the client gave up before it was answered")]
    GivenUp,
    /// A policy refused the connection.
    #[error("connection closed due to policy rejection: {0}")]
    Denied(#[source] Refusal),
    /// A changed policy refused a connection that was open.
    #[error("connection closed due to policy change: {0}")]
    PolicyChanged(#[source] Refusal),
    /// The process or the pod stops.
    #[error("connection closed due to connection drain")]
    Drained,
    /// The peer of the tunnel was revoked.
    #[error("{}", isthmus_hbone::PeerRevoked)]
    Revoked,
    /// The copy ended with an error.
    #[error("{0}")]
    Copy(#[source] CopyError),
    /// Bytes that had to come first could not be written.
    #[error("cannot write the first bytes: {0}")]
    Preface(#[source] std::io::Error),
    /// The gateway does not reach this target.
    #[error("{0}")]
    Gateway(#[from] GatewayRefusal),
    /// The service has no address that a client of the gateway's network would use.
    #[error("service {hostname} has no virtual address on network {network}")]
    NoVip {
        /// The service.
        hostname: Hostname,
        /// The network.
        network: NetworkId,
    },
    /// What should be a TLS ClientHello is none, or its name has no route.
    #[error("{0}")]
    Hello(#[from] HelloError),
    /// A tunnel could not be dialled; several connections may have waited for it.
    #[error("{0}")]
    Dial(#[source] ConnectFailure),
    /// No tunnel was had in time.
    #[error("connection failed: no tunnel within {0:?}")]
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
    /// The response flag of a connection that ended with this.
    #[must_use]
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(_) | Self::PolicyChanged(_) => ResponseFlag::Deny,
            Self::Tls(_) | Self::Crowded(_) | Self::NoPeerIdentity => ResponseFlag::TlsFailure,
            Self::Revoked => ResponseFlag::CertRevoked,
            Self::Http2(_) => ResponseFlag::H2HandshakeFailure,
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
            | Self::BadRequest(_)
            | Self::Connect(_)
            | Self::Open(_)
            | Self::NoAnswer(_)
            | Self::NoTunnel(_)
            | Self::Inbound(_)
            | Self::GivenUp
            | Self::Drained
            | Self::Copy(_)
            | Self::Preface(_)
            | Self::Gateway(_)
            | Self::NoVip { .. }
            | Self::Hello(_) => ResponseFlag::Connect,
        }
    }

    /// The policy to blame, if one is.
    #[must_use]
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Denied(refusal) | Self::PolicyChanged(refusal) => refusal.policy.as_ref(),
            _ => None,
        }
    }

    /// How far a dial of a tunnel came that failed with this.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Identity(_) | Self::NoCertificate { .. } => Stage::Identity,
            Self::HboneTimeout(_) => Stage::Timeout,
            Self::Tls(_) => Stage::Tls,
            Self::Http2(_) => Stage::Handshake,
            _ => Stage::Connect,
        }
    }

    /// A failed dial of an HBONE port: silence there has its own flag.
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
            (Error::Crowded(after), ResponseFlag::TlsFailure),
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
