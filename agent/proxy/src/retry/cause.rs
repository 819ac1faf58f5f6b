//! Which failures of a connection attempt let another endpoint be tried. Pure.
//!
//! Until the peer has answered the CONNECT with 200, no byte of the application has been sent, so the attempt may be
//! repeated elsewhere. But only where the peer did not decide: a 400 or 401 is its answer, and a peer that fails the
//! identity check must not be replaced by another one that may be controlled by the same attacker.

use isthmus_hbone::pool::Stage;
use isthmus_hbone::{ConnectStatus, OpenError, TlsError};
use isthmus_sys::socket::ConnectError;

use crate::error::Error;

/// A failure after which another endpoint may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The peer refused the TCP connection: nothing listens there.
    Refused,
    /// The network reports the address as unreachable: the answer for a pod that has just gone, where no host is left that
    /// could refuse.
    Unreachable,
    /// The TCP connection timed out.
    ConnectTimeout,
    /// The TLS handshake timed out.
    TlsTimeout,
    /// The peer closed the connection during the TLS handshake, as a closing listener does with the connections in its
    /// queue. This is no failed identity check: the client side of a handshake is finished before the server verifies the
    /// client's certificate, and a refusal of the server's certificate is an error of our own.
    TlsClosed,
    /// The peer refused the stream (REFUSED_STREAM): it has reached its limit of streams.
    RefusedStream,
    /// The peer sent GOAWAY and did not process the CONNECT.
    GoAway,
    /// The peer answered the CONNECT with 503.
    Unavailable,
}

impl Cause {
    /// The cause of an error; `None` when no other endpoint may be tried.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Connect(error) => Self::of_connect(error),
            Error::HboneTimeout(_) | Error::NoTunnel(_) => Some(Self::ConnectTimeout),
            Error::Tls(TlsError::Timeout(_)) => Some(Self::TlsTimeout),
            Error::Tls(TlsError::Io(_)) => Some(Self::TlsClosed),
            Error::Open(OpenError::Refused) => Some(Self::RefusedStream),
            Error::Open(OpenError::GoingAway) => Some(Self::GoAway),
            Error::Open(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)) => Some(Self::Unavailable),
            // The error of the dial, shared by all streams that waited for the tunnel.
            Error::Dial(failure) => match failure.error.downcast_ref::<Error>() {
                Some(error) => Self::of(error),
                None => (failure.stage == Stage::Timeout).then_some(Self::ConnectTimeout),
            },
            _ => None,
        }
    }

    fn of_connect(error: &ConnectError) -> Option<Self> {
        match error {
            ConnectError::Timeout { .. } => Some(Self::ConnectTimeout),
            ConnectError::Refused { .. } => Some(Self::Refused),
            other => other.retryable().then_some(Self::Unreachable),
        }
    }

    /// The value in logs and metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect timeout",
            Self::TlsTimeout => "tls timeout",
            Self::TlsClosed => "closed in tls handshake",
            Self::RefusedStream => "refused stream",
            Self::GoAway => "going away",
            Self::Unavailable => "status 503",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use isthmus_hbone::pool::{ConnectFailure, PoolError};
    use isthmus_hbone::{Reason, TunnelError};
    use isthmus_state::route::DenyReason;

    use super::*;

    #[test]
    fn only_failures_that_the_peer_did_not_decide_are_retryable() {
        let to = "10.0.0.1:15008".parse().unwrap();
        let after = Duration::from_secs(10);
        let other = |kind: io::ErrorKind| Error::Connect(ConnectError::Other { to, cause: kind.into() });
        let status = |status: u16| Error::Open(OpenError::Status(status.into()));
        let tls = |error| Error::Tls(TlsError::Tls(error));
        let io = |kind: io::ErrorKind| Error::Tls(TlsError::Io(kind.into()));
        let reset = TunnelError::Io { kind: io::ErrorKind::ConnectionReset, detail: "reset".to_owned() };
        let table = [
            (Error::Connect(ConnectError::Refused { to }), Some(Cause::Refused)),
            (Error::Connect(ConnectError::Timeout { to, after }), Some(Cause::ConnectTimeout)),
            (other(io::ErrorKind::HostUnreachable), Some(Cause::Unreachable)),
            (other(io::ErrorKind::NetworkUnreachable), Some(Cause::Unreachable)),
            (other(io::ErrorKind::PermissionDenied), None),
            (Error::HboneTimeout(to), Some(Cause::ConnectTimeout)),
            (Error::NoTunnel(after), Some(Cause::ConnectTimeout)),
            (Error::Tls(TlsError::Timeout(after)), Some(Cause::TlsTimeout)),
            (io(io::ErrorKind::ConnectionReset), Some(Cause::TlsClosed)),
            (io(io::ErrorKind::UnexpectedEof), Some(Cause::TlsClosed)),
            (Error::Open(OpenError::Refused), Some(Cause::RefusedStream)),
            (Error::Open(OpenError::GoingAway), Some(Cause::GoAway)),
            (status(503), Some(Cause::Unavailable)),
            // The peer's own answer.
            (status(400), None),
            (status(401), None),
            (status(403), None),
            (status(502), None),
            (status(504), None),
            (Error::Open(OpenError::Reset(Reason::CANCEL)), None),
            // The peer's identity, or our own.
            (tls(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)), None),
            (tls(rustls::Error::AlertReceived(rustls::AlertDescription::CertificateUnknown)), None),
            (Error::NoCertificate { identity: "spiffe://td/ns/n/sa/s".parse().unwrap(), after }, None),
            // Once TLS is up, a close may be how the peer refuses our certificate.
            (Error::Http2(reset.clone()), None),
            (Error::Open(OpenError::Lost(reset)), None),
            (Error::NoAnswer(after), None),
            (Error::Unroutable(DenyReason::Recursive), None),
            // The pod's own limit, not the peer's.
            (Error::NoDescriptor, None),
            (Error::Drained, None),
        ];
        for (error, want) in table {
            assert_eq!(Cause::of(&error), want, "{error}");
            let text = error.to_string();
            let pooled = Error::from(PoolError::Connect(ConnectFailure::new(error.stage(), error)));
            assert_eq!(Cause::of(&pooled), want, "pooled: {text}");
        }
    }
}
