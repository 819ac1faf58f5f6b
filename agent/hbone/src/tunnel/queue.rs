//! Received bytes of one stream that its application has not taken yet, and how much memory they occupy.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf as _, Bytes, BytesMut};

/// The smallest buffer.
const SMALLEST: usize = 2048;

/// Received bytes in pieces, in order.
#[derive(Debug, Default)]
pub(crate) struct ReceiveQueue {
    pieces: VecDeque<Piece>,
    len: usize,
    /// Bytes of memory of all pieces.
    occupied: usize,
}

#[derive(Debug)]
struct Piece {
    bytes: BytesMut,
    /// What was allocated for it: taking bytes from its front frees nothing.
    allocated: usize,
}

impl ReceiveQueue {
    pub(super) fn into_pieces(self) -> Vec<Bytes> {
        let Self { pieces, len: _, occupied: _ } = self;
        let bytes = |Piece { bytes, allocated: _ }| BytesMut::freeze(bytes);
        pieces.into_iter().map(bytes).collect()
    }

    /// Copies the pieces, so that what they occupy is known.
    pub(super) fn from_pieces(pieces: &[Bytes]) -> Self {
        let mut queue = Self::default();
        pieces.iter().for_each(|piece| queue.push(piece));
        queue
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory that is occupied beyond the bytes.
    pub(crate) fn slack(&self) -> usize {
        self.occupied - self.len
    }

    /// Copies bytes. Small pieces share a buffer: a peer that sends single bytes must not cost a buffer for each.
    pub(crate) fn push(&mut self, data: &[u8]) {
        self.len += data.len();
        match self.pieces.back_mut() {
            Some(last) if last.bytes.capacity() - last.bytes.len() >= data.len() => {
                last.bytes.extend_from_slice(data);
            }
            _ => {
                let mut bytes = BytesMut::with_capacity(data.len().max(SMALLEST));
                bytes.extend_from_slice(data);
                let allocated = bytes.capacity();
                self.occupied += allocated;
                self.pieces.push_back(Piece { bytes, allocated });
            }
        }
    }

    /// Takes the first piece.
    pub(crate) fn pop(&mut self) -> Option<BytesMut> {
        let Piece { bytes, allocated } = self.pieces.pop_front()?;
        self.len -= bytes.len();
        self.occupied -= allocated;
        self.release_when_empty();
        Some(bytes)
    }

    /// The first pieces; returns how many.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(&piece.bytes);
            count += 1;
        }
        count
    }

    /// Drops the first `count` bytes.
    pub(crate) fn advance(&mut self, mut count: usize) {
        while count > 0 {
            let Some(front) = self.pieces.front_mut() else { return };
            let part = count.min(front.bytes.len());
            front.bytes.advance(part);
            self.len -= part;
            count -= part;
            if front.bytes.is_empty() {
                self.occupied -= front.allocated;
                self.pieces.pop_front();
            }
        }
        self.release_when_empty();
    }

    /// Drops all bytes; returns how many there were.
    pub(crate) fn clear(&mut self) -> usize {
        std::mem::take(self).len
    }

    /// An idle stream holds no memory.
    fn release_when_empty(&mut self) {
        if self.pieces.is_empty() {
            self.pieces = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_bytes_share_a_buffer_and_its_slack_is_known() {
        let mut queue = ReceiveQueue::default();
        for _ in 0..100 {
            queue.push(b"x");
        }
        let mut slices = [IoSlice::new(&[]); 4];
        assert_eq!(queue.slices(&mut slices), 1);
        assert_eq!(queue.slack(), SMALLEST - 100);
        queue.push(&[0; 5000]);
        queue.advance(50);
        assert_eq!(queue.slack(), SMALLEST - 50);
        queue.advance(50);
        assert_eq!((queue.slack(), queue.is_empty()), (0, false));
        assert_eq!(queue.pop().map(|piece| piece.len()), Some(5000));
        assert_eq!((queue.slack(), queue.is_empty(), queue.clear()), (0, true, 0));
    }
}
