//! Items of a hand-over between two processes, each with the descriptor that belongs to it.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use isthmus_hbone::handover::Item;
use tokio_seqpacket::UnixSeqpacket;
use tokio_seqpacket::ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage};
use zeroize::Zeroizing;

/// Bytes of a message in one packet.
const PACKET: usize = 32 * 1024;

/// What a message means.
pub(crate) mod kind {
    pub(crate) const ITEM: u8 = b'I';
    pub(crate) const END: u8 = b'E';
    pub(crate) const RUNNING: u8 = b'A';
    pub(crate) const RETURN: u8 = b'R';
    pub(crate) const OUTCOME: u8 = b'O';
}

/// A message.
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) bytes: Vec<u8>,
    pub(crate) socket: Option<OwnedFd>,
}

/// The connection between two processes.
pub(crate) struct Channel(pub(crate) UnixSeqpacket);

impl Channel {
    pub(crate) async fn connect(path: &Path) -> Self {
        Self(UnixSeqpacket::connect(path).await.unwrap())
    }

    pub(crate) async fn send(&self, kind: u8, bytes: &[u8], socket: Option<&OwnedFd>) {
        let mut left = bytes;
        let mut socket = socket;
        loop {
            let (now, later) = left.split_at(left.len().min(PACKET));
            let packet = [&[kind, u8::from(later.is_empty())], now].concat();
            let mut buffer = [0; 64];
            let mut ancillary = AncillaryMessageWriter::new(&mut buffer);
            if let Some(socket) = socket.take() {
                ancillary.add_fds([socket.as_fd()]).unwrap();
            }
            assert_eq!(self.0.send_with_ancillary(&packet, &mut ancillary).await.unwrap(), packet.len());
            if later.is_empty() {
                return;
            }
            left = later;
        }
    }

    /// The next message; `None` when the other process has closed.
    pub(crate) async fn recv(&self) -> Option<Message> {
        let (mut bytes, mut socket) = (Vec::new(), None);
        loop {
            let (mut packet, mut buffer) = ([0; PACKET + 2], [0; 64]);
            let (info, ancillary) = self.0.recv_with_ancillary(&mut packet, &mut buffer).await.ok()?;
            assert!(!info.truncated() && !info.ancillary_truncated());
            for message in ancillary.into_messages() {
                if let OwnedAncillaryMessage::FileDescriptors(mut sockets) = message {
                    socket = socket.or_else(|| sockets.next());
                }
            }
            let [kind, last, part @ ..] = &packet[..info.bytes_read()] else { return None };
            bytes.extend(part);
            if *last == 1 {
                return Some(Message { kind: *kind, bytes, socket });
            }
        }
    }

    pub(crate) async fn send_items(&self, items: &[Item]) {
        for item in items {
            self.send(kind::ITEM, &item.bytes, item.socket.as_ref()).await;
        }
        self.send(kind::END, &[], None).await;
    }

    /// Items up to their end, and what else has arrived before them.
    pub(crate) async fn recv_items(&self) -> Option<(Vec<Item>, Vec<Message>)> {
        let (mut items, mut others) = (Vec::new(), Vec::new());
        loop {
            let message = self.recv().await?;
            match message.kind {
                kind::ITEM => {
                    items.push(Item { bytes: Zeroizing::new(message.bytes), socket: message.socket });
                }
                kind::END => return Some((items, others)),
                _ => others.push(message),
            }
        }
    }
}
