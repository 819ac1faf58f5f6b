//! Settings of both ends (RFC 9113 §6.5).

use crate::error::Violation;
use crate::flow::DEFAULT_WINDOW;
use crate::frame::{MAX_MAX_FRAME_SIZE, MAX_U31, MIN_MAX_FRAME_SIZE};
use crate::hpack::decode::DEFAULT_TABLE_SIZE;

/// Identifiers of settings.
pub(crate) mod id {
    /// Size of the decoder's dynamic table.
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    /// Whether PUSH_PROMISE is allowed.
    pub(crate) const ENABLE_PUSH: u16 = 2;
    /// Streams that the receiver may have open.
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    /// Window of new streams.
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    /// Largest payload of a frame.
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    /// Largest header list.
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// Our settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Dynamic table that the peer may use. 0: the labels of a tunnel are not worth its memory.
    pub header_table_size: u32,
    /// Streams that the peer may have open. 200. A client, which refuses all streams of a server, does not send it.
    pub max_concurrent_streams: u32,
    /// Window of a new stream. 256 KiB.
    pub stream_window: u32,
    /// Window of the connection; 65,535 at least. 16 MiB.
    pub connection_window: u32,
    /// Largest frame accepted; from 16,384 to 2^24-1. 16,384: no larger frames are needed for throughput.
    pub max_frame_size: u32,
    /// Largest header list accepted, as RFC 9113 §6.5.2 counts it. 64 KiB.
    pub max_header_list_size: u32,
    /// Streams that a client opens before it knows the server's limit. 100.
    pub initial_send_streams: u32,
    /// Bytes of answers (SETTINGS, PING, RST_STREAM, WINDOW_UPDATE) that may be queued while the peer does not read them.
    /// 64 KiB.
    pub max_queued_answers: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            header_table_size: 0,
            max_concurrent_streams: 200,
            stream_window: 256 * 1024,
            connection_window: 16 * 1024 * 1024,
            max_frame_size: MIN_MAX_FRAME_SIZE,
            max_header_list_size: 64 * 1024,
            initial_send_streams: 100,
            max_queued_answers: 64 * 1024,
        }
    }
}

/// The peer's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerSettings {
    /// Dynamic table that our encoder could use.
    pub header_table_size: u32,
    /// Streams that we may have open.
    pub max_concurrent_streams: u32,
    /// Window of new streams.
    pub initial_window_size: u32,
    /// Largest frame.
    pub max_frame_size: u32,
    /// Largest header list.
    pub max_header_list_size: u32,
}

// === impl Settings ===

impl Settings {
    /// The same with every value within its bounds.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.stream_window = self.stream_window.min(MAX_U31);
        self.connection_window = self.connection_window.clamp(DEFAULT_WINDOW, MAX_U31);
        self.max_frame_size = self.max_frame_size.clamp(MIN_MAX_FRAME_SIZE, MAX_MAX_FRAME_SIZE);
        self
    }

    /// The payload of our SETTINGS.
    #[must_use]
    pub fn payload(&self, server: bool) -> Vec<u8> {
        let mut all = vec![
            (id::HEADER_TABLE_SIZE, self.header_table_size),
            (id::INITIAL_WINDOW_SIZE, self.stream_window),
            (id::MAX_FRAME_SIZE, self.max_frame_size),
            (id::MAX_HEADER_LIST_SIZE, self.max_header_list_size),
        ];
        // A server must not send ENABLE_PUSH with a value other than 0, and need not send it at all.
        all.push(if server {
            (id::MAX_CONCURRENT_STREAMS, self.max_concurrent_streams)
        } else {
            (id::ENABLE_PUSH, 0)
        });
        // In ascending order, as upstream's.
        all.sort_unstable();
        let bytes = |(id, value): (u16, u32)| id.to_be_bytes().into_iter().chain(value.to_be_bytes());
        all.into_iter().flat_map(bytes).collect()
    }
}

// === impl PeerSettings ===

impl PeerSettings {
    /// The settings of a peer that has not sent any; `streams` is what to assume of its limit.
    #[must_use]
    pub fn initial(streams: u32) -> Self {
        Self {
            header_table_size: DEFAULT_TABLE_SIZE,
            max_concurrent_streams: streams,
            initial_window_size: DEFAULT_WINDOW,
            max_frame_size: MIN_MAX_FRAME_SIZE,
            max_header_list_size: u32::MAX,
        }
    }

    /// Applies the payload of a SETTINGS frame, whose length must be a multiple of 6. `first`: the peer's first, in which
    /// an absent limit of streams means that there is none.
    ///
    /// # Errors
    /// When a value is not allowed.
    pub fn apply(&mut self, payload: &[u8], from_server: bool, first: bool) -> Result<(), Violation> {
        if first {
            self.max_concurrent_streams = u32::MAX;
        }
        for setting in payload.chunks_exact(6) {
            let id = u16::from_be_bytes([setting[0], setting[1]]);
            let value = crate::frame::u32_at(&setting[2..]);
            match id {
                id::HEADER_TABLE_SIZE => self.header_table_size = value,
                id::ENABLE_PUSH if value > u32::from(!from_server) => return Err(Violation::Setting(id)),
                id::MAX_CONCURRENT_STREAMS => self.max_concurrent_streams = value,
                id::INITIAL_WINDOW_SIZE if value > MAX_U31 => return Err(Violation::InitialWindow),
                id::INITIAL_WINDOW_SIZE => self.initial_window_size = value,
                id::MAX_FRAME_SIZE if !(MIN_MAX_FRAME_SIZE..=MAX_MAX_FRAME_SIZE).contains(&value) => {
                    return Err(Violation::Setting(id));
                }
                id::MAX_FRAME_SIZE => self.max_frame_size = value,
                id::MAX_HEADER_LIST_SIZE => self.max_header_list_size = value,
                _ => {}
            }
        }
        Ok(())
    }
}
