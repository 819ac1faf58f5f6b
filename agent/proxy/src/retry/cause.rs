//! Which failures let another endpoint be tried. Pure.
//!
//! Until the far end answered 200 no byte of the application has been sent, so a connection that was not made may be
//! made elsewhere. But only where the far end did not decide: a 400 or a 401 is its answer, and whoever fails the
//! identity check must not be replaced by somebody who might be with him.

use isthmus_hbone::pool::Stage;
use isthmus_hbone::{ConnectStatus, OpenError, TlsError};
use isthmus_sys::socket::ConnectError;

use crate::error::Error;

/// Why another endpoint may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// Nobody listens there.
    Refused,
    /// The network says that it cannot be reached: the answer for a pod that is just gone, where there is no host left
    /// that could refuse.
    Unreachable,
    /// Nobody answered.
    ConnectTimeout,
    /// The TLS handshake was not finished in time.
    TlsTimeout,
    /// The connection was closed within the TLS handshake, as a listener that closes does with those in its queue. Our
    /// end of a handshake is finished before the peer sees our certificate, and we say so ourselves when we refuse the
    /// peer's: this is no failed identity check.
    TlsClosed,
    /// The peer took no more streams.
    RefusedStream,
    /// The peer was closing its tunnel and did not look at the CONNECT.
    GoAway,
    /// 503.
    Unavailable,
}

impl Cause {
    /// The cause that an error is, if it is one.
    pub(crate) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Connect(error) => Self::of_connect(error),
            Error::HboneTimeout(_) | Error::NoTunnel(_) => Some(Self::ConnectTimeout),
            Error::Tls(TlsError::Timeout(_)) => Some(Self::TlsTimeout),
            Error::Tls(TlsError::Io(_)) => Some(Self::TlsClosed),
            Error::Open(OpenError::Refused) => Some(Self::RefusedStream),
            Error::Open(OpenError::GoingAway) => Some(Self::GoAway),
            Error::Open(OpenError::Status(ConnectStatus::SERVICE_UNAVAILABLE)) => Some(Self::Unavailable),
            // What the dialler said, shared by all that waited for it.
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

    /// As logs and metrics name it.
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
    fn only_what_was_not_decided_by_the_far_end_may_be_tried_elsewhere() {
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
            // The far end's own word.
            (status(400), None),
            (status(401), None),
            (status(403), None),
            (status(502), None),
            (status(504), None),
            (Error::Open(OpenError::Reset(Reason::CANCEL)), None),
            // Who we are talking to, or who we are.
            (tls(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)), None),
            (tls(rustls::Error::AlertReceived(rustls::AlertDescription::CertificateUnknown)), None),
            (Error::NoCertificate { identity: "spiffe://td/ns/n/sa/s".parse().unwrap(), after }, None),
            // After TLS the peer may have refused our certificate by closing.
            (Error::Http2(reset.clone()), None),
            (Error::Open(OpenError::Lost(reset)), None),
            (Error::NoAnswer(after), None),
            (Error::Unroutable(DenyReason::Recursive), None),
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
