//! Reads the server name from a TLS ClientHello without answering it. The bytes are kept to be forwarded unchanged.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::error::{HelloError, MAX_CLIENT_HELLO};

/// A ClientHello.
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
        if bytes.len() >= MAX_CLIENT_HELLO {
            return Err(HelloError::TooLong);
        }
    }
}

#[cfg(test)]
mod tests;
