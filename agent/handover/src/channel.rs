//! The socket between two agents: frames in packets, and the descriptors of the pieces in them. Knows no order of frames.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use isthmus_hbone::handover::wipe;
use isthmus_sys::peer::{self, UntrustedPeer};
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage};
use zeroize::Zeroizing;

use crate::Item;
use crate::frame::{Frame, FrameError, MAX_DATA, MAX_FRAME, MAX_PIECES, Piece};

/// Room for the descriptors of a packet; the kernel drops what does not fit, and says so.
const ANCILLARY: usize = 32 + 4 * MAX_PIECES;

/// Why a conversation has ended early.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other process has ended or closed the socket.
    #[error("the other agent has closed the hand-over socket")]
    Closed,
    /// The socket failed.
    #[error("hand-over socket: {0}")]
    Io(#[from] io::Error),
    /// The other process is no agent of this node.
    #[error("hand-over socket: {0}")]
    Peer(#[from] UntrustedPeer),
    /// What was received is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// More or less came with a packet than it says.
    #[error("a hand-over packet has other descriptors than it says")]
    Descriptors,
}

/// One conversation.
pub(crate) struct Channel {
    socket: UnixSeqpacket,
    buffer: Zeroizing<Vec<u8>>,
}

/// Pieces that are sent together.
#[derive(Default)]
struct Packet<'a> {
    pieces: Vec<Piece>,
    sockets: Vec<BorrowedFd<'a>>,
    length: usize,
}

impl Channel {
    /// Connects to the agent that listens there.
    pub(crate) async fn connect(path: &Path) -> Result<Self, ChannelError> {
        Self::new(UnixSeqpacket::connect(path).await?)
    }

    /// Takes a connection of an agent, and of no one else.
    pub(crate) fn new(socket: UnixSeqpacket) -> Result<Self, ChannelError> {
        peer::check(&socket)?;
        Ok(Self { socket, buffer: Zeroizing::new(vec![0; MAX_FRAME]) })
    }

    pub(crate) async fn send(&self, frame: Frame) -> Result<(), ChannelError> {
        self.send_with(frame, &[]).await
    }

    /// Sends items with their descriptors, as many in a packet as fit.
    pub(crate) async fn send_items(&self, items: &[Item]) -> Result<(), ChannelError> {
        let mut packet = Packet::default();
        for item in items {
            let mut socket = item.socket.as_ref().map(|socket| socket.as_fd());
            let mut left = item.bytes.as_slice();
            loop {
                if packet.is_full() {
                    self.send_packet(&mut packet).await?;
                }
                let (now, later) = left.split_at(left.len().min(MAX_DATA - packet.length));
                packet.add(now, later.is_empty(), socket.take());
                if later.is_empty() {
                    break;
                }
                left = later;
            }
        }
        self.send_packet(&mut packet).await
    }

    async fn send_packet(&self, packet: &mut Packet<'_>) -> Result<(), ChannelError> {
        let Packet { pieces, sockets, .. } = std::mem::take(packet);
        if pieces.is_empty() {
            return Ok(());
        }
        self.send_with(Frame::Pieces(pieces), &sockets).await
    }

    async fn send_with(&self, frame: Frame, sockets: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let bytes = frame.encode();
        let mut buffer = [0; ANCILLARY];
        let mut ancillary = AncillaryMessageWriter::new(&mut buffer);
        if !sockets.is_empty() {
            ancillary.add_fds(sockets.iter().copied()).map_err(io::Error::other)?;
        }
        // A packet is sent whole or not at all.
        self.socket.send_with_ancillary(&bytes, &mut ancillary).await?;
        wipe(bytes);
        Ok(())
    }

    /// The next frame, and the descriptors that came with it. Cancel safe: a packet is received whole or not at all.
    pub(crate) async fn recv(&mut self) -> Result<(Frame, Vec<OwnedFd>), ChannelError> {
        let mut ancillary = [0; ANCILLARY];
        let received = self.socket.recv_with_ancillary(&mut self.buffer, &mut ancillary).await;
        let (info, messages) = match received {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ChannelError::Closed),
            received => received?,
        };
        // Owned before any check can return, or they would stay open.
        let mut sockets: Vec<OwnedFd> = Vec::new();
        for message in messages.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(passed) = message {
                sockets.extend(passed);
            }
        }
        if info.ancillary_truncated() {
            return Err(ChannelError::Descriptors);
        }
        if info.truncated() {
            return Err(FrameError::Field("length").into());
        }
        if info.bytes_read() == 0 {
            return Err(ChannelError::Closed);
        }
        let frame = Frame::decode(&self.buffer[..info.bytes_read()])?;
        let expected = match &frame {
            Frame::Pieces(pieces) => pieces.iter().filter(|piece| piece.has_socket).count(),
            _ => 0,
        };
        if sockets.len() == expected { Ok((frame, sockets)) } else { Err(ChannelError::Descriptors) }
    }
}

// === impl Packet ===

impl<'a> Packet<'a> {
    fn is_full(&self) -> bool {
        self.length == MAX_DATA || self.pieces.len() == MAX_PIECES
    }

    fn add(&mut self, bytes: &[u8], last: bool, socket: Option<BorrowedFd<'a>>) {
        self.length += bytes.len();
        let data = Zeroizing::new(bytes.to_vec());
        self.pieces.push(Piece { data, last, has_socket: socket.is_some() });
        self.sockets.extend(socket);
    }
}
