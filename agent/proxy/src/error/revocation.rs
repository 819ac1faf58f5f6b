//! How an error shows that the peer of a tunnel was revoked. The tunnel reports I/O errors only, so a text marks them.

use std::io;

use isthmus_hbone::copy::CopyError;
use isthmus_hbone::{OpenError, StreamError, TunnelError};

/// The error of every read and write of a connection whose peer was revoked. The text is ztunnel's.
pub(crate) const REVOKED: &str = "connection closed: peer certificate revoked by CRL";

/// Whether a copy ended because the peer of its tunnel was revoked.
pub(crate) fn ended_copy(error: &CopyError) -> bool {
    matches!(error, CopyError::Stream(StreamError::Lost(tunnel)) if ended_tunnel(tunnel))
}

/// Whether a CONNECT was not answered for that reason.
pub(crate) fn ended_open(error: &OpenError) -> bool {
    matches!(error, OpenError::Lost(tunnel) if ended_tunnel(tunnel))
}

/// Of a tunnel in a tunnel it may be the outer one, whose failure the inner one passes on.
fn ended_tunnel(error: &TunnelError) -> bool {
    use io::ErrorKind::{ConnectionAborted, PermissionDenied};
    match error {
        TunnelError::Io { kind: PermissionDenied, detail } => detail == REVOKED,
        TunnelError::Io { kind: ConnectionAborted, detail } => detail.ends_with(REVOKED),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use isthmus_hbone::copy::Side;

    use super::*;

    #[test]
    fn only_our_own_text_marks_a_revoked_peer() {
        let io = |kind, detail: &str| TunnelError::Io { kind, detail: detail.to_owned() };
        let revoked = io(io::ErrorKind::PermissionDenied, REVOKED);
        assert!(ended_copy(&CopyError::Stream(StreamError::Lost(revoked.clone()))));
        assert!(ended_open(&OpenError::Lost(revoked)));
        let firewall = io(io::ErrorKind::PermissionDenied, "Operation not permitted");
        assert!(!ended_copy(&CopyError::Stream(StreamError::Lost(firewall))));
        assert!(!ended_open(&OpenError::Lost(TunnelError::Closed)));
        let error = io::Error::new(io::ErrorKind::PermissionDenied, REVOKED);
        assert!(!ended_copy(&CopyError::Tcp { side: Side::Local, error }));
    }
}
