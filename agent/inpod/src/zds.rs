//! The ZDS socket: packets with file descriptors, in and out. It owns framing and buffers and must not know what a
//! request means.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::OwnedAncillaryMessage;

use crate::wire::{self, BadRequest, Request};

/// Receive buffer. Requests are a few hundred bytes; a larger packet does not belong to the protocol.
const PACKET: usize = 64 * 1024;
/// Room for more descriptors than a request may carry. The kernel discards what does not fit (`MSG_CTRUNC`), and a
/// request with too many must be reported as such.
const ANCILLARY: usize = 256;

/// A connection to the node role's ZDS socket.
pub(crate) struct Connection {
    socket: UnixSeqpacket,
    packet: Vec<u8>,
    ancillary: Vec<u8>,
}

/// Why receiving a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecvError {
    /// The node role closed the connection: it restarts or has given up on this agent.
    #[error("the node role closed the connection")]
    Closed,
    /// The socket failed.
    #[error("receive: {0}")]
    Io(#[from] io::Error),
    /// A packet or its descriptors did not fit the buffers.
    #[error("a packet is larger than {PACKET} bytes or carries too many file descriptors")]
    Truncated,
    /// A packet is not a valid request.
    #[error(transparent)]
    BadRequest(#[from] BadRequest),
}

impl Connection {
    /// Connects and sends the hello with the protocol version.
    pub(crate) async fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixSeqpacket::connect(path).await?;
        let new = Self { socket, packet: vec![0; PACKET], ancillary: vec![0; ANCILLARY] };
        new.send(&wire::HELLO).await?;
        Ok(new)
    }

    /// Receives the next request. Cancel safe: a packet is received whole or not at all.
    pub(crate) async fn recv(&mut self) -> Result<Request, RecvError> {
        let mut slices = [IoSliceMut::new(&mut self.packet)];
        let received = self.socket.recv_vectored_with_ancillary(&mut slices, &mut self.ancillary);
        let (info, files) = received.await?;
        // Take ownership of the descriptors before any check can return, or they would leak.
        let mut fds: Vec<OwnedFd> = Vec::new();
        for message in files.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(passed) = message {
                fds.extend(passed);
            }
        }
        if info.truncated() || info.ancillary_truncated() {
            return Err(RecvError::Truncated);
        }
        match info.bytes_read() {
            0 => Err(RecvError::Closed),
            len => Ok(wire::decode(&self.packet[..len], fds)?),
        }
    }

    /// Sends one packet.
    pub(crate) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.socket.send(packet).await.map(drop)
    }
}
