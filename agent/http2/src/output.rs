//! Control frames that wait to be written.

use crate::code::Code;
use crate::frame::{self, StreamId, kind};

/// Capacity that is kept while nothing waits.
const KEPT: usize = 512;

/// The queue, and how much of it the peer caused.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    buffer: Vec<u8>,
    written: usize,
    /// Bytes of answers that were queued since the queue was last drained, less what was written.
    answers: usize,
}

impl Output {
    /// A queue that starts with these bytes.
    #[must_use]
    pub(crate) fn from_parts(buffer: Vec<u8>, answers: usize) -> Self {
        Self { buffer, written: 0, answers }
    }

    /// Bytes of answers that wait.
    #[must_use]
    pub(crate) fn answers(&self) -> usize {
        self.answers
    }

    /// What waits to be written.
    #[must_use]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.written..]
    }

    /// The first `count` bytes were written. An empty queue holds no memory to speak of.
    pub(crate) fn consume(&mut self, count: usize) {
        self.written = self.written.saturating_add(count).min(self.buffer.len());
        self.answers = self.answers.saturating_sub(count);
        if self.written < self.buffer.len() {
            if self.written > self.buffer.len() / 2 {
                self.buffer.drain(..self.written);
                self.written = 0;
            }
            return;
        }
        (self.written, self.answers) = (0, 0);
        if self.buffer.capacity() > KEPT {
            self.buffer = Vec::new();
        } else {
            self.buffer.clear();
        }
    }

    /// The buffer, to append frames of our own making.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Queues a frame that the peer caused.
    pub(crate) fn answer(&mut self, kind: u8, flags: u8, stream: StreamId, payload: &[u8]) {
        let before = self.buffer.len();
        frame::write(&mut self.buffer, kind, flags, stream, payload);
        self.answers += self.buffer.len() - before;
    }

    /// Queues a RST_STREAM.
    pub(crate) fn reset(&mut self, stream: StreamId, code: Code) {
        self.answer(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes());
    }

    /// Queues a WINDOW_UPDATE.
    pub(crate) fn window_update(&mut self, stream: StreamId, increment: u32) {
        self.answer(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes());
    }

    /// Queues a GOAWAY.
    pub(crate) fn goaway(&mut self, last_stream: StreamId, code: Code, debug: &[u8]) {
        let mut payload = Vec::with_capacity(8 + debug.len());
        payload.extend_from_slice(&last_stream.to_be_bytes());
        payload.extend_from_slice(&code.0.to_be_bytes());
        payload.extend_from_slice(debug);
        frame::write(&mut self.buffer, kind::GOAWAY, 0, 0, &payload);
    }
}
