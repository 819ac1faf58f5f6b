//! Forwards a query to a DNS server and returns the response, both unchanged and over the client's transport: to the
//! server that the client addressed if it is known, otherwise to the agent's own. Every query has its own socket: the
//! kernel's random source port protects against spoofed responses, and responses cannot be confused.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use isthmus_rt::descriptors::{DescriptorPermit, DescriptorShare};
use isthmus_sys::socket::{ConnectError, Sockets};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::response::Transport;

/// Largest DNS message.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Forwards to DNS servers, in order.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    sockets: Sockets,
    servers: Vec<SocketAddr>,
    /// Timeout of one server.
    timeout: Duration,
    /// Each query has a socket; `None`: they are not counted.
    descriptors: Option<DescriptorShare>,
}

/// Why a query was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("no DNS server is known: resolv.conf names none")]
    NoServer,
    #[error("DNS server {server}: no answer within {after:?}")]
    Timeout { server: SocketAddr, after: Duration },
    #[error("DNS server {server}: {cause}")]
    Io { server: SocketAddr, cause: io::Error },
    #[error("the pod holds its share of file descriptors")]
    NoDescriptor,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Socket(#[from] isthmus_sys::Error),
}

// === impl Relay ===

impl Relay {
    pub(crate) fn new(sockets: &Sockets, servers: Vec<SocketAddr>, timeout: Duration) -> Self {
        // Sockets that share a port would receive each other's responses.
        let sockets = sockets.clone().with_reuse_port(false);
        Self { sockets, servers, timeout, descriptors: None }
    }

    /// Counts its sockets.
    pub(crate) fn with_descriptors(self, descriptors: DescriptorShare) -> Self {
        Self { descriptors: Some(descriptors), ..self }
    }

    /// Counts one more descriptor; the permit is `None` when none are counted.
    pub(crate) fn descriptor(&self) -> Result<Option<DescriptorPermit>, RelayError> {
        let Some(descriptors) = &self.descriptors else { return Ok(None) };
        descriptors.acquire().map(Some).ok_or(RelayError::NoDescriptor)
    }

    /// The response of the server that the client addressed, or else of the first of our servers that answers.
    pub(crate) async fn ask(
        &self,
        message: &[u8],
        transport: Transport,
        original: Option<SocketAddr>,
    ) -> Result<Vec<u8>, RelayError> {
        let _descriptor = self.descriptor()?;
        let mut outcome = Err(RelayError::NoServer);
        for server in self.candidates(original.as_ref()) {
            outcome =
                match tokio::time::timeout(self.timeout, self.ask_one(message, transport, *server)).await {
                    Ok(outcome) => outcome,
                    Err(_) => Err(RelayError::Timeout { server: *server, after: self.timeout }),
                };
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Copies a TCP connection in both directions after the first message, for exchanges of more than one response.
    pub(crate) async fn pass(
        &self,
        client: &mut TcpStream,
        message: &[u8],
        original: Option<SocketAddr>,
    ) -> Result<(), RelayError> {
        let _descriptor = self.descriptor()?;
        let mut outcome = Err(RelayError::NoServer);
        for server in self.candidates(original.as_ref()) {
            match self.sockets.connect(*server, None, self.timeout).await {
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

    fn candidates<'a>(&'a self, original: Option<&'a SocketAddr>) -> &'a [SocketAddr] {
        original.map_or(&self.servers, std::slice::from_ref)
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
                // A connected socket receives datagrams of this server only.
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
                let mut stream = self.sockets.connect(server, None, self.timeout).await?;
                write(&mut stream, message).await.map_err(failed)?;
                let answer = read(&mut stream).await.map_err(failed)?;
                answer.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}

/// Whether a datagram is a response with the id of the query.
fn answers(answer: &[u8], query: &[u8]) -> bool {
    answer.len() >= 3 && answer[..2] == query[..2] && answer[2] & 0x80 != 0
}

/// Reads one length-prefixed message; `None` at the end of the stream.
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

/// Writes one length-prefixed message in one write.
pub(crate) async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat()).await
}
