//! The TLS session of a tunnel: the socket, the TLS connection and their buffers as one value.
//!
//! The only place on the HBONE path that names the TLS library's stream type.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::TlsError;

/// Ciphertext read ahead: the TLS library asks for 4 KiB at a time, which is one system call for a quarter of a record.
const READ_AHEAD: usize = 32 * 1024;

/// Plaintext the TLS library may hold encrypted but unwritten: one large DATA frame's worth.
const WRITE_BUFFER: usize = 256 * 1024;

/// An established TLS session over `S`.
#[derive(Debug)]
pub struct TlsSession<S>(TlsStream<BufReader<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsSession<S> {
    /// The client's side. No server name is sent: whom to expect is in the configuration's verifier.
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

    /// The server's side.
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

    /// What was negotiated and whom the peer proved to be.
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
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsSession<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
