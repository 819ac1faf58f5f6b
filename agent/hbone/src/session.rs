//! The TLS session of a tunnel: transport, handshake and what was received behind it, as one value.
//!
//! The handshake is rustls'; once it is finished the tunnel itself does the record layer. Which peers to accept is decided
//! by the verifier in the configuration, which another crate provides and which knows what the peer proved.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_record::handshake::{HandshakeError, Handshaker, Progress};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::error::{TlsError, TunnelError};
use crate::tunnel::{Keys, Link, Transport};

/// What one read of a handshake takes: a flight with two certificates fits.
const READ: usize = 8 * 1024;

/// An established TLS session over `S`.
pub struct TlsSession<S> {
    io: S,
    handshaker: Handshaker,
    received: Vec<u8>,
}

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
        let handshaker = Handshaker::client(&config, name).map_err(TlsError::from_handshake)?;
        Self::establish(handshaker, io, deadline).await
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
        let handshaker = Handshaker::server(&config).map_err(TlsError::from_handshake)?;
        Self::establish(handshaker, io, deadline).await
    }

    async fn establish(handshaker: Handshaker, io: S, deadline: Duration) -> Result<Self, TlsError> {
        let mut session = Self { io, handshaker, received: Vec::new() };
        let done = tokio::time::timeout(deadline, session.handshake()).await;
        done.map_err(|_| TlsError::Timeout(deadline))??;
        Ok(session)
    }

    async fn handshake(&mut self) -> Result<(), TlsError> {
        let mut output = Vec::new();
        loop {
            let step = self.handshaker.step(&mut self.received, &mut output);
            if !output.is_empty() {
                let sent = self.io.write_all(&output).await;
                output.clear();
                // The reason of a failed handshake says more than that its alert could not be sent.
                if step.is_ok() {
                    sent.map_err(TlsError::Io)?;
                    self.io.flush().await.map_err(TlsError::Io)?;
                } else {
                    let _ = self.io.flush().await;
                }
            }
            if step.map_err(TlsError::from_handshake)? == Progress::Done {
                return Ok(());
            }
            self.received.reserve(READ);
            if self.io.read_buf(&mut self.received).await.map_err(TlsError::Io)? == 0 {
                let text = "tls handshake eof";
                return Err(TlsError::Io(io::Error::new(io::ErrorKind::UnexpectedEof, text)));
            }
        }
    }
}

impl<S> TlsSession<S> {
    /// The negotiated parameters and the peer's certificates.
    #[must_use]
    pub fn state(&self) -> &rustls::CommonState {
        self.handshaker.state()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for TlsSession<S> {
    type Io = S;

    fn into_link(self) -> Result<Link<S>, TunnelError> {
        let session = self.handshaker.into_session().map_err(|error| TunnelError::keys(&error))?;
        let keys = Keys { sealer: session.sealer, opener: session.opener, received: self.received };
        Ok(Link { io: self.io, keys: Some(keys) })
    }
}

impl<S: fmt::Debug> fmt::Debug for TlsSession<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSession").field("io", &self.io).finish_non_exhaustive()
    }
}

impl TlsError {
    fn from_handshake(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Tls(error) => Self::Tls(error),
            other => Self::Io(io::Error::new(io::ErrorKind::InvalidData, other)),
        }
    }
}

impl TunnelError {
    /// The keys of a finished handshake could not be taken over.
    fn keys(error: &HandshakeError) -> Self {
        Self::Io { kind: io::ErrorKind::InvalidData, detail: error.to_string() }
    }
}
