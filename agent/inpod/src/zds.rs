//! The socket: packets with files, in and out. Knows the framing, not the requests' meaning.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;

use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::OwnedAncillaryMessage;

use crate::wire::{self, BadRequest, Request};

/// Room for a packet. Requests are a few hundred bytes; a larger packet than this is not one of the protocol.
const PACKET: usize = 64 * 1024;
/// Room for more file descriptors than a packet may carry, so that too many are seen and not lost.
const ANCILLARY: usize = 256;

/// A connection to the node role.
pub(crate) struct Connection {
    socket: UnixSeqpacket,
    packet: Vec<u8>,
    ancillary: Vec<u8>,
}

/// Why no request was received.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecvError {
    /// The node role closed the connection.
    #[error("the node closed the connection")]
    Closed,
    /// The connection failed.
    #[error("receiving failed: {0}")]
    Io(#[from] io::Error),
    /// A packet, or its files, did not fit.
    #[error("a packet is larger than {PACKET} bytes or carries too many file descriptors")]
    Truncated,
    /// A packet was no request.
    #[error(transparent)]
    Bad(#[from] BadRequest),
}

impl Connection {
    /// Connects and says hello.
    pub(crate) async fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixSeqpacket::connect(path).await?;
        let new = Self { socket, packet: vec![0; PACKET], ancillary: vec![0; ANCILLARY] };
        new.send(&wire::HELLO).await?;
        Ok(new)
    }

    /// The next request. Cancel safe: a packet is taken whole or not at all.
    pub(crate) async fn recv(&mut self) -> Result<Request, RecvError> {
        let mut slices = [IoSliceMut::new(&mut self.packet)];
        let received = self.socket.recv_vectored_with_ancillary(&mut slices, &mut self.ancillary);
        let (info, files) = received.await?;
        // The files are owned before anything is judged, so that none is left open.
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
