//! Errors of the ClientHello on a gateway's SNI listener.

use std::io;
use std::time::Duration;

/// Longest ClientHello that the gateway reads, in bytes.
pub(crate) const MAX_CLIENT_HELLO: usize = 16 * 1024;

/// Why a connection to an SNI listener cannot be routed.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The ClientHello was not complete in time.
    #[error("no complete TLS ClientHello within {0:?}")]
    Timeout(Duration),
    /// The client closed the connection before its ClientHello was complete.
    #[error("the client closed before its TLS ClientHello was complete")]
    Closed,
    /// It exceeds the read limit.
    #[error("the TLS ClientHello is longer than {MAX_CLIENT_HELLO} bytes")]
    TooLong,
    /// The first bytes are not a TLS ClientHello.
    #[error("not a TLS ClientHello: {0}")]
    NotTls(rustls::Error),
    /// Reading from the client failed.
    #[error("cannot read the TLS ClientHello: {0}")]
    Io(#[from] io::Error),
    /// No route is configured for the server name (SNI), or for connections without one.
    #[error("no route for server name {}", .0.as_deref().unwrap_or("(none)"))]
    NoRoute(Option<String>),
}
