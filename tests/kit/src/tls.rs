//! TLS for scripted peers, by tokio-rustls: not the agent's own session, against which they are peers.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use tokio_rustls::TlsStream;

const DEADLINE: Duration = Duration::from_secs(20);

/// Connects as the client, without a server name.
///
/// # Errors
/// When the handshake fails.
pub async fn connect<S>(config: Arc<ClientConfig>, io: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    Ok(TlsStream::Client(timeout(DEADLINE, TlsConnector::from(config).connect(name, io)).await??))
}

/// Accepts as the server.
///
/// # Errors
/// When the handshake fails.
pub async fn accept<S>(config: Arc<ServerConfig>, io: S) -> io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    Ok(TlsStream::Server(timeout(DEADLINE, TlsAcceptor::from(config).accept(io)).await??))
}
