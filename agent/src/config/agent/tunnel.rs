//! HTTP/2 settings of HBONE tunnels, their pool and their memory.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::memory::{MemoryConfig, read_memory};
use crate::config::source::Reader;

/// Flow control windows, frame size and pool of HBONE tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Flow control window of one stream in bytes; `None`: the default.
    pub stream_window: Option<u32>,
    /// Flow control window of one connection in bytes; `None`: the default.
    pub connection_window: Option<u32>,
    /// Largest accepted frame in bytes; `None`: the default.
    pub frame_size: Option<u32>,
    /// Concurrent streams of one pooled connection.
    pub max_streams: u16,
    /// How long a pooled connection without streams is kept.
    pub idle: Duration,
    /// Memory that tunnels may hold.
    pub memory: MemoryConfig,
}

/// The values that HTTP/2 allows, in bytes (RFC 9113, 6.5.2 and 6.9.1).
const WINDOW: RangeInclusive<u32> = 1..=0x7fff_ffff;
const FRAME: RangeInclusive<u32> = 16_384..=16_777_215;

pub(super) fn read_tunnel(r: &mut Reader<'_>) -> TunnelConfig {
    TunnelConfig {
        stream_window: r.within("HTTP2_STREAM_WINDOW_SIZE", WINDOW),
        connection_window: r.within("HTTP2_CONNECTION_WINDOW_SIZE", WINDOW),
        frame_size: r.within("HTTP2_FRAME_SIZE", FRAME),
        max_streams: r.parsed("POOL_MAX_STREAMS_PER_CONNECTION", 100, "a number from 0 to 65535"),
        idle: r.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300)),
        memory: read_memory(r),
    }
}
