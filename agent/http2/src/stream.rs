//! The states of streams (RFC 9113 §5.1), and the memory of closed ones.
//!
//! Knows nothing of frames' contents. Streams are plain values in a hash map.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use crate::flow::{ReceiveWindow, SendWindow};
use crate::frame::StreamId;

/// One half of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// Its head has not passed yet: a response that we owe or await.
    AwaitsHead,
    /// DATA may pass.
    Open,
    /// END_STREAM has passed.
    Closed,
}

/// A stream that was opened and not reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    /// What the peer sends.
    pub receiving: Half,
    /// What we send.
    pub sending: Half,
    /// What we may send.
    pub send_window: SendWindow,
    /// What the peer may send. A stream whose halves are closed stays until everything was released.
    pub receive_window: ReceiveWindow,
    /// The application wants to send and there was no credit: a number that increases with the order of asking.
    pub blocked: Option<u64>,
    /// The step of time in which it was opened.
    pub opened: u32,
    /// DATA has passed, in either direction.
    pub carried: bool,
}

/// How a stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both halves ended with END_STREAM.
    Ended,
    /// We reset it: frames may be in flight.
    LocalReset,
    /// The peer reset it.
    PeerReset,
}

/// The streams of a connection.
#[derive(Debug, Default, Clone)]
pub(crate) struct Streams {
    all: HashMap<StreamId, Stream, BuildHasherDefault<IdHasher>>,
    /// Those with an open half.
    active: usize,
}

/// The last closed streams.
#[derive(Debug, Default, Clone)]
pub(crate) struct ClosedStreams(VecDeque<(StreamId, Ending)>);

/// Closed streams that are remembered: enough for all applications of a tunnel to close at once. Frames for older ones are
/// taken for late.
const REMEMBERED: usize = 1024;

/// Spreads stream ids, which are odd and count upwards. A peer that chooses ids so that they collide gets long chains of
/// at most as many streams as it may have open.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

// === impl IdHasher ===

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // An odd number near 2^64 divided by the golden ratio: neighbouring ids differ in their upper bits too.
        self.0 = (self.0.rotate_left(5) ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

// === impl Stream ===

impl Stream {
    /// Whether both halves are closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.receiving == Half::Closed && self.sending == Half::Closed
    }
}

// === impl Streams ===

impl Streams {
    /// How many have an open half.
    #[must_use]
    pub(crate) fn active(&self) -> usize {
        self.active
    }

    /// A stream with an open half.
    #[must_use]
    pub(crate) fn live(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.all.get_mut(&id).filter(|stream| !stream.is_closed())
    }

    /// A stream, also when it only waits for the release of its bytes.
    #[must_use]
    pub(crate) fn any(&mut self, id: StreamId) -> Option<&mut Stream> {
        self.all.get_mut(&id)
    }

    /// A stream to look at.
    #[must_use]
    pub(crate) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.all.get(&id)
    }

    /// Adds a stream.
    pub(crate) fn insert(&mut self, id: StreamId, stream: Stream) {
        self.active += usize::from(!stream.is_closed());
        self.all.insert(id, stream);
    }

    /// Removes a stream.
    pub(crate) fn remove(&mut self, id: StreamId) -> Option<Stream> {
        let stream = self.all.remove(&id)?;
        self.active -= usize::from(!stream.is_closed());
        Some(stream)
    }

    /// Closes halves; true when that closed the stream.
    pub(crate) fn close(&mut self, id: StreamId, close: impl FnOnce(&mut Stream)) -> bool {
        let Some(stream) = self.live(id) else { return false };
        close(stream);
        let closed = stream.is_closed();
        self.active -= usize::from(closed);
        closed
    }

    /// All of them, in no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (StreamId, &mut Stream)> {
        self.all.iter_mut().map(|(id, stream)| (*id, stream))
    }

    /// All of them in the order of their ids.
    #[must_use]
    pub(crate) fn sorted(&self) -> Vec<(StreamId, Stream)> {
        let mut all: Vec<_> = self.all.iter().map(|(id, stream)| (*id, *stream)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }
}

impl FromIterator<(StreamId, Stream)> for Streams {
    fn from_iter<I: IntoIterator<Item = (StreamId, Stream)>>(all: I) -> Self {
        let mut streams = Self::default();
        for (id, stream) in all {
            streams.insert(id, stream);
        }
        streams
    }
}

// === impl ClosedStreams ===

impl ClosedStreams {
    /// Remembers a stream, and forgets the oldest when there are too many.
    pub(crate) fn remember(&mut self, id: StreamId, ending: Ending) {
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((id, ending));
    }

    /// How a stream ended, if it is remembered. The latest are looked at first.
    #[must_use]
    pub(crate) fn ending(&self, id: StreamId) -> Option<Ending> {
        self.0.iter().rev().find(|(known, _)| *known == id).map(|(_, ending)| *ending)
    }

    /// All that are remembered, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (StreamId, Ending)> {
        self.0.iter().copied()
    }
}

impl FromIterator<(StreamId, Ending)> for ClosedStreams {
    fn from_iter<I: IntoIterator<Item = (StreamId, Ending)>>(all: I) -> Self {
        let mut closed = Self::default();
        for (id, ending) in all {
            closed.remember(id, ending);
        }
        closed
    }
}
