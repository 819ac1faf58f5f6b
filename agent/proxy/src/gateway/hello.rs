//! Reads the server name out of a TLS ClientHello without answering it. The bytes are kept, to be forwarded unchanged.

use std::io::{self, ErrorKind};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest ClientHello that is waited for, in bytes.
const LIMIT: usize = 16 * 1024;

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
    #[error("the TLS ClientHello is longer than {LIMIT} bytes")]
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

/// What was read.
#[derive(Debug)]
pub(super) struct Hello {
    /// The server name, if one was sent.
    pub(super) name: Option<String>,
    /// All bytes read so far.
    pub(super) bytes: Bytes,
}

/// Reads until the ClientHello is complete, but no more than 16 KiB and no longer than `deadline`.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    deadline: Duration,
) -> Result<Hello, HelloError> {
    let hello = tokio::time::timeout(deadline, read_all(stream)).await;
    hello.map_err(|_| HelloError::Timeout(deadline))?
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut bytes = BytesMut::with_capacity(2048);
    let mut seen = 0;
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(HelloError::Closed);
        }
        while seen < bytes.len() {
            match acceptor.read_tls(&mut &bytes[seen..]) {
                Ok(0) => break,
                Ok(n) => seen += n,
                Err(error) if error.kind() == ErrorKind::Other => return Err(HelloError::TooLong),
                Err(error) => return Err(error.into()),
            }
            let accepted = acceptor.accept().map_err(|(error, _alert)| HelloError::NotTls(error))?;
            if let Some(accepted) = accepted {
                let name = accepted.client_hello().server_name().map(str::to_owned);
                return Ok(Hello { name, bytes: bytes.freeze() });
            }
        }
        if bytes.len() >= LIMIT {
            return Err(HelloError::TooLong);
        }
    }
}

#[cfg(test)]
mod tests;
