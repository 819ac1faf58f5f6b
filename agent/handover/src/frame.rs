//! The frames of the conversation between bytes and values. Every one carries the version, and none is longer than
//! [`MAX_FRAME`].

use isthmus_hbone::handover::wipe;
use isthmus_proto::handover as proto;
use prost::Message as _;
use zeroize::Zeroizing;

use crate::VERSION;

/// Bytes of items in one frame.
pub const MAX_DATA: usize = 32 * 1024;
/// Pieces in one frame, each of which may have a descriptor.
pub const MAX_PIECES: usize = 64;
/// The longest frame: pieces, or the list of a node's pods.
pub const MAX_FRAME: usize = 64 * 1024;
/// Items of a unit: a tunnel has one, and one per stream.
pub const MAX_ITEMS: u32 = 16 * 1024 + 2;
/// Pods that a successor may name.
pub const MAX_PODS: usize = 1024;
/// Longest text in a frame.
const MAX_TEXT: usize = 512;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The predecessor begins.
    Hello {
        /// Its build, for the log.
        build: String,
    },
    /// The successor answers with the pods that it serves, by uid.
    Wants(Vec<String>),
    /// A unit of a pod follows.
    Offer {
        /// The pod's uid.
        pod: String,
        /// How many items it has.
        items: u32,
    },
    /// Parts of items, in order.
    Pieces(Vec<Piece>),
    /// The successor can run the unit.
    Accepted,
    /// It cannot.
    Refused {
        /// Why.
        reason: String,
    },
    /// The unit is the successor's.
    Commit,
    /// No more units follow.
    Finished,
}

/// A part of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The bytes.
    pub data: Zeroizing<Vec<u8>>,
    /// The item is complete.
    pub last: bool,
    /// Its descriptor is the next one of those that came with the frame.
    pub has_socket: bool,
}

/// Why a frame is refused.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other process is of another version.
    #[error("the other agent's hand-over is of version {0}, this one's of {VERSION}")]
    Version(u32),
    /// It is no frame.
    #[error("malformed hand-over frame: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A part is missing or too long.
    #[error("hand-over frame: invalid {0}")]
    Field(&'static str),
}

impl Frame {
    /// The bytes, in a buffer that does not grow: a piece may hold secrets.
    #[must_use]
    pub fn encode(self) -> Zeroizing<Vec<u8>> {
        use proto::frame::Body;
        let body = match self {
            Self::Hello { build } => Body::Hello(proto::Hello { build }),
            Self::Wants(pods) => Body::Wants(proto::Wants { pods }),
            Self::Offer { pod, items } => Body::Offer(proto::Offer { pod, items }),
            Self::Pieces(pieces) => {
                let piece = |mut piece: Piece| proto::Piece {
                    data: std::mem::take(&mut *piece.data),
                    last: piece.last,
                    has_socket: piece.has_socket,
                };
                Body::Pieces(proto::Pieces { pieces: pieces.into_iter().map(piece).collect() })
            }
            Self::Accepted => Body::Accepted(proto::Accepted {}),
            Self::Refused { reason } => Body::Refused(proto::Refused { reason: shortened(reason) }),
            Self::Commit => Body::Commit(proto::Commit {}),
            Self::Finished => Body::Finished(proto::Finished {}),
        };
        let mut message = proto::Frame { version: VERSION, body: Some(body) };
        let mut bytes = Zeroizing::new(Vec::with_capacity(message.encoded_len()));
        // A vector takes whatever it is given.
        let _ = message.encode(&mut *bytes);
        if let Some(Body::Pieces(all)) = &mut message.body {
            all.pieces.iter_mut().for_each(|piece| wipe(std::mem::take(&mut piece.data).into()));
        }
        bytes
    }

    /// # Errors
    /// When the version is another one, or the frame is not one of this version's.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        use proto::frame::Body;
        if bytes.len() > MAX_FRAME {
            return Err(FrameError::Field("length"));
        }
        let version = proto::Versioned::decode(bytes)?.version;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        match proto::Frame::decode(bytes)?.body.ok_or(FrameError::Field("kind"))? {
            Body::Hello(hello) => Ok(Self::Hello { build: text(hello.build, "build")? }),
            Body::Wants(wants) if wants.pods.len() > MAX_PODS => Err(FrameError::Field("list of pods")),
            Body::Wants(wants) => Ok(Self::Wants(wants.pods)),
            Body::Offer(proto::Offer { pod, items }) => match items {
                1..=MAX_ITEMS => Ok(Self::Offer { pod: text(pod, "pod")?, items }),
                _ => Err(FrameError::Field("number of items")),
            },
            Body::Pieces(all) => pieces(all),
            Body::Accepted(_) => Ok(Self::Accepted),
            Body::Refused(refused) => Ok(Self::Refused { reason: text(refused.reason, "reason")? }),
            Body::Commit(_) => Ok(Self::Commit),
            Body::Finished(_) => Ok(Self::Finished),
        }
    }
}

fn pieces(message: proto::Pieces) -> Result<Frame, FrameError> {
    let piece = |piece: proto::Piece| Piece {
        data: Zeroizing::new(piece.data),
        last: piece.last,
        has_socket: piece.has_socket,
    };
    let pieces: Vec<Piece> = message.pieces.into_iter().map(piece).collect();
    let length: usize = pieces.iter().map(|piece| piece.data.len()).sum();
    let is_void = |piece: &Piece| piece.data.is_empty() && !piece.last;
    let count = pieces.len();
    if !(1..=MAX_PIECES).contains(&count) || length > MAX_DATA || pieces.iter().any(is_void) {
        return Err(FrameError::Field("piece"));
    }
    Ok(Frame::Pieces(pieces))
}

fn text(text: String, field: &'static str) -> Result<String, FrameError> {
    if text.len() <= MAX_TEXT { Ok(text) } else { Err(FrameError::Field(field)) }
}

fn shortened(mut text: String) -> String {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(length: usize, last: bool, has_socket: bool) -> Piece {
        Piece { data: vec![7; length].into(), last, has_socket }
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let frames = [
            Frame::Hello { build: "1.2".into() },
            Frame::Wants(vec!["a".into(), "b".into()]),
            Frame::Offer { pod: "a".into(), items: 3 },
            Frame::Pieces(vec![piece(MAX_DATA - 1, false, true), piece(1, true, false)]),
            Frame::Pieces(vec![piece(0, true, false); MAX_PIECES]),
            Frame::Accepted,
            Frame::Refused { reason: "no such pod".into() },
            Frame::Commit,
            Frame::Finished,
        ];
        for frame in frames {
            let bytes = frame.clone().encode();
            assert!(bytes.len() <= MAX_FRAME);
            assert_eq!(Frame::decode(&bytes).unwrap(), frame);
        }
    }

    #[test]
    fn another_version_and_what_is_too_long_are_refused() {
        let refused = |bytes: &[u8]| Frame::decode(bytes).unwrap_err().to_string();
        assert_eq!(refused(&[8, 2]), "the other agent's hand-over is of version 2, this one's of 1");
        assert_eq!(refused(&[8, 1]), "hand-over frame: invalid kind");
        for bad in [
            vec![piece(MAX_DATA, false, true), piece(1, true, false)],
            vec![piece(0, true, false); MAX_PIECES + 1],
            vec![piece(0, false, false)],
            Vec::new(),
        ] {
            assert_eq!(refused(&Frame::Pieces(bad).encode()), "hand-over frame: invalid piece");
        }
        let many = Frame::Offer { pod: String::new(), items: MAX_ITEMS + 1 };
        assert_eq!(refused(&many.encode()), "hand-over frame: invalid number of items");
        let reason = Frame::Refused { reason: "é".repeat(MAX_TEXT) };
        assert!(
            matches!(Frame::decode(&reason.encode()), Ok(Frame::Refused { reason }) if reason.len() == MAX_TEXT)
        );
    }
}
