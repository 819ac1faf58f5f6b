//! The TLS session of a tunnel: transport, TLS connection and their buffers as one value.
//!
//! The only place on the HBONE path that names the TLS library's stream type. Which peers to accept is
//! decided by the verifier in the configuration, which another crate provides and which knows what the peer proved.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::error::TlsError;

/// Read buffer for ciphertext: the TLS library reads 4 KiB at a time, which would be four system calls per full record.
const READ_AHEAD: usize = 32 * 1024;

/// Bytes that the TLS library may hold encrypted but unwritten: about one large DATA frame.
const WRITE_BUFFER: usize = 256 * 1024;

/// An established TLS session over `S`.
#[derive(Debug)]
pub struct TlsSession<S>(TlsStream<BufReader<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsSession<S> {
    /// Connects as the client. No server name is sent: the peer is verified by identity, not by name.
    ///
    /// # Errors
    /// When the handshake fails or takes longer than `deadline`.
    pub async fn connect(
        config: Arc<rustls::ClientConfig>,
        io: S,
        deadline: Duration,
    ) -> Result<Self, TlsError> {
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let io = BufReader::with_capacity(READ_AHEAD, io);
        let handshake = TlsConnector::from(config).connect_with(name, io, |tls| {
            tls.set_buffer_limit(Some(WRITE_BUFFER));
        });
        let done =
            tokio::time::timeout(deadline, handshake).await.map_err(|_| TlsError::Timeout(deadline))?;
        Ok(Self(TlsStream::Client(done.map_err(TlsError::from_io)?)))
    }

    /// Accepts as the server.
    ///
    /// # Errors
    /// When the handshake fails or takes longer than `deadline`.
    pub async fn accept(
        config: Arc<rustls::ServerConfig>,
        io: S,
        deadline: Duration,
    ) -> Result<Self, TlsError> {
        let io = BufReader::with_capacity(READ_AHEAD, io);
        let handshake = TlsAcceptor::from(config).accept_with(io, |tls| {
            tls.set_buffer_limit(Some(WRITE_BUFFER));
        });
        let done =
            tokio::time::timeout(deadline, handshake).await.map_err(|_| TlsError::Timeout(deadline))?;
        Ok(Self(TlsStream::Server(done.map_err(TlsError::from_io)?)))
    }

    /// The negotiated parameters and the peer's certificates.
    #[must_use]
    pub fn state(&self) -> &rustls::CommonState {
        self.0.get_ref().1
    }

    /// The transport below.
    #[must_use]
    pub fn io(&self) -> &S {
        self.0.get_ref().0.get_ref()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsSession<S> {
    isthmus_rt::io::forward_read!(0);
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsSession<S> {
    isthmus_rt::io::forward_write!(0);
    isthmus_rt::io::forward_shutdown!(0);
}
