//! Sends a query to a DNS server and brings the answer back, both unchanged and over the client's own transport: to the
//! server that the client asked where that is known, otherwise to those of the agent. Every query has a socket of its own: its port is as hard to guess as the kernel makes it, and answers
//! cannot be mixed up.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use isthmus_sys::socket::{ConnectError, Sockets};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::answer::Transport;

/// Largest DNS message.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Servers to ask, in order.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    sockets: Sockets,
    servers: Vec<SocketAddr>,
    /// For one server.
    patience: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("no DNS server is configured")]
    NoServer,
    #[error("DNS server {server}: no answer within {after:?}")]
    Timeout { server: SocketAddr, after: Duration },
    #[error("DNS server {server}: {cause}")]
    Io { server: SocketAddr, cause: io::Error },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Socket(#[from] isthmus_sys::Error),
}

// === impl Relay ===

impl Relay {
    pub(crate) fn new(sockets: &Sockets, servers: Vec<SocketAddr>, patience: Duration) -> Self {
        // Sockets that share a port would get each other's answers.
        let sockets = sockets.clone().with_reuse_port(false);
        Self { sockets, servers, patience }
    }

    /// The answer of the server that the client asked; when nobody knows which that was, of the first of ours that has
    /// one.
    pub(crate) async fn ask(
        &self,
        message: &[u8],
        transport: Transport,
        asked: Option<SocketAddr>,
    ) -> Result<Vec<u8>, RelayError> {
        let mut outcome = Err(RelayError::NoServer);
        for server in self.candidates(asked.as_ref()) {
            outcome =
                match tokio::time::timeout(self.patience, self.ask_one(message, transport, *server)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(RelayError::Timeout { server: *server, after: self.patience }),
                };
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Passes everything on in both directions after a first message, for exchanges that are no question and answer.
    pub(crate) async fn pass(
        &self,
        client: &mut TcpStream,
        message: &[u8],
        asked: Option<SocketAddr>,
    ) -> Result<(), RelayError> {
        let mut outcome = Err(RelayError::NoServer);
        for server in self.candidates(asked.as_ref()) {
            match self.sockets.connect(*server, None, self.patience).await {
                Ok(mut stream) => {
                    let failed = |cause| RelayError::Io { server: *server, cause };
                    write(&mut stream, message).await.map_err(failed)?;
                    return copy_bidirectional(client, &mut stream).await.map(drop).map_err(failed);
                }
                Err(error) => outcome = Err(error.into()),
            }
        }
        outcome
    }

    fn candidates<'a>(&'a self, asked: Option<&'a SocketAddr>) -> &'a [SocketAddr] {
        asked.map_or(&self.servers, std::slice::from_ref)
    }

    async fn ask_one(
        &self,
        message: &[u8],
        transport: Transport,
        server: SocketAddr,
    ) -> Result<Vec<u8>, RelayError> {
        let failed = |cause| RelayError::Io { server, cause };
        match transport {
            Transport::Udp => {
                let any = if server.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                let socket = self.sockets.udp(SocketAddr::new(any, 0))?;
                // Connected, it takes datagrams of this server only.
                socket.connect(server).await.map_err(failed)?;
                socket.send(message).await.map_err(failed)?;
                loop {
                    let mut answer = Vec::with_capacity(MAX_MESSAGE);
                    socket.recv_buf(&mut answer).await.map_err(failed)?;
                    if answers(&answer, message) {
                        return Ok(answer);
                    }
                }
            }
            Transport::Tcp => {
                let mut stream = self.sockets.connect(server, None, self.patience).await?;
                write(&mut stream, message).await.map_err(failed)?;
                let answer = read(&mut stream).await.map_err(failed)?;
                answer.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}

/// Whether this datagram is a response to that query.
fn answers(answer: &[u8], query: &[u8]) -> bool {
    answer.len() >= 3 && answer[..2] == query[..2] && answer[2] & 0x80 != 0
}

/// Reads one message with its length in front; `None` at a clean end.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if stream.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut length[1..]).await?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes one message with its length in front, in one piece.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}
