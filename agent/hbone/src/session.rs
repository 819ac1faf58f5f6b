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
use isthmus_rt::threads::Offload;
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
        Self::connect_on(&Offload::default(), config, io, deadline).await
    }

    /// As [`Self::connect`]; `offload` says where keys are agreed on and signatures made and verified.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_on(
        offload: &Offload,
        config: Arc<rustls::ClientConfig>,
        io: S,
        deadline: Duration,
    ) -> Result<Self, TlsError> {
        let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
        let handshaker = Handshaker::client(&config, name).map_err(TlsError::from_handshake)?;
        Self::establish(offload, handshaker, io, deadline).await
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
        Self::accept_on(&Offload::default(), config, io, deadline).await
    }

    /// As [`Self::accept`]; `offload` says where keys are agreed on and signatures made and verified.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn accept_on(
        offload: &Offload,
        config: Arc<rustls::ServerConfig>,
        io: S,
        deadline: Duration,
    ) -> Result<Self, TlsError> {
        let handshaker = Handshaker::server(&config).map_err(TlsError::from_handshake)?;
        Self::establish(offload, handshaker, io, deadline).await
    }

    async fn establish(
        offload: &Offload,
        handshaker: Handshaker,
        io: S,
        deadline: Duration,
    ) -> Result<Self, TlsError> {
        let handshake = Self::handshake(offload, handshaker, io);
        tokio::time::timeout(deadline, handshake).await.map_err(|_| TlsError::Timeout(deadline))?
    }

    async fn handshake(offload: &Offload, mut handshaker: Handshaker, mut io: S) -> Result<Self, TlsError> {
        let mut received = Vec::new();
        loop {
            let compute = move || {
                let mut output = Vec::new();
                let step = handshaker.step(&mut received, &mut output);
                (handshaker, received, output, step)
            };
            let computed = offload.run("tls handshake step", compute).await.ok_or_else(TlsError::aborted)?;
            let (output, step);
            (handshaker, received, output, step) = computed;
            if !output.is_empty() {
                let sent = io.write_all(&output).await;
                // The reason of a failed handshake says more than that its alert could not be sent.
                if step.is_ok() {
                    sent.map_err(TlsError::Io)?;
                    io.flush().await.map_err(TlsError::Io)?;
                } else {
                    let _ = io.flush().await;
                }
            }
            if step.map_err(TlsError::from_handshake)? == Progress::Done {
                return Ok(Self { io, handshaker, received });
            }
            received.reserve(READ);
            if io.read_buf(&mut received).await.map_err(TlsError::Io)? == 0 {
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
    /// The tasks of the tenant ended meanwhile, or the step panicked.
    fn aborted() -> Self {
        Self::Io(io::Error::other("tls handshake aborted"))
    }

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
