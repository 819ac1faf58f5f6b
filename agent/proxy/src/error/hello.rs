//! Why the gateway has no route for a connection to a TLS listener.

use std::io;
use std::time::Duration;

/// Longest ClientHello that the gateway reads, in bytes.
pub(crate) const MAX_CLIENT_HELLO: usize = 16 * 1024;

/// Why a connection to a TLS listener has no route.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The client said nothing, or not all, in time.
    #[error("no complete TLS ClientHello within {0:?}")]
    Timeout(Duration),
    /// The client closed before it had said all.
    #[error("the client closed before its TLS ClientHello was complete")]
    Closed,
    /// It is longer than any honest one.
    #[error("the TLS ClientHello is longer than {MAX_CLIENT_HELLO} bytes")]
    TooLong,
    /// It is not TLS.
    #[error("not a TLS ClientHello: {0}")]
    NotTls(rustls::Error),
    /// The connection failed.
    #[error("cannot read the TLS ClientHello: {0}")]
    Io(#[from] io::Error),
    /// Nothing is configured for this name.
    #[error("no route for server name {}", .0.as_deref().unwrap_or("(none)"))]
    NoRoute(Option<String>),
}
