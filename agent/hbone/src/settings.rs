//! HTTP/2 settings and timeouts of both ends of a tunnel.

use std::time::Duration;

/// Settings of a tunnel. Where a default differs from ztunnel's, its doc comment says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes a peer may send on one stream before we release credit. 4 MiB.
    pub stream_window: u32,
    /// Bytes a peer may send on all streams of a tunnel before we release credit.
    ///
    /// A stream whose application does not read occupies up to one stream window of it. The default is therefore one
    /// stream window for every stream a client opens (100 × 4 MiB), so that stalled streams cannot stop the others. It is
    /// memory only while applications stall, and then no more than the kernel would buffer for as many sockets.
    pub connection_window: u32,
    /// Largest DATA frame we accept. 1 MiB: the engine writes one frame per flush, so the frame size bounds throughput.
    pub frame_size: u32,
    /// Bytes of a stream that may be queued for writing to the tunnel. 1 MiB.
    pub send_buffer: usize,
    /// Streams that a client opens on one tunnel at most; fewer if the peer allows fewer. 100.
    pub client_max_streams: usize,
    /// Streams that a server lets a client open on one tunnel. 200.
    pub server_max_streams: u32,
    /// Budget for unread small DATA frames on one tunnel, beyond which the engine closes it: a frame of less than 256 bytes
    /// costs 256 minus its length until it is read.
    ///
    /// The engine's own default closes tunnels with ordinary small writes; unlimited would let a peer make us allocate one
    /// queue entry per byte. The default is the connection window: small frames can then cost about as much memory as the
    /// window's bytes can.
    pub data_frame_budget: usize,
    /// Silence after which a PING is sent. 10 s.
    pub ping_interval: Duration,
    /// Silence after the PING for which the tunnel is closed. 20 s.
    pub ping_timeout: Duration,
    /// How long a client may take to send its HTTP/2 preface. 10 s.
    pub handshake_timeout: Duration,
}

const MIB: u32 = 1024 * 1024;

impl Default for Settings {
    fn default() -> Self {
        let connection_window = 400 * MIB;
        Self {
            stream_window: 4 * MIB,
            connection_window,
            frame_size: MIB,
            send_buffer: MIB as usize,
            client_max_streams: 100,
            server_max_streams: 200,
            data_frame_budget: connection_window as usize,
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(20),
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// Header bytes that a client accepts in an answer.
const CLIENT_HEADER_LIST: u32 = 16 * 1024;
/// Header bytes that a server accepts in a request.
const SERVER_HEADER_LIST: u32 = 64 * 1024;
/// Streams that we reset are remembered while frames from before the reset may still arrive, and enough of them for all
/// applications of a tunnel to close at once: a frame for a forgotten stream counts as a protocol error of the peer.
const REMEMBER_RESETS: Duration = Duration::from_secs(30);
const REMEMBERED_RESETS: usize = 1024;
/// Protocol errors of the peer that cost one stream each, over the life of a tunnel, before it is closed.
const MAX_STREAM_ERRORS: usize = 10_000;

impl Settings {
    pub(crate) fn client(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .header_table_size(0)
            .enable_push(false)
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.frame_size)
            .max_header_list_size(CLIENT_HEADER_LIST)
            .initial_max_send_streams(self.client_max_streams)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(REMEMBER_RESETS)
            .max_local_error_reset_streams(Some(MAX_STREAM_ERRORS))
            .data_frame_budget(self.data_frame_budget);
        builder
    }

    pub(crate) fn server(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .header_table_size(0)
            .max_concurrent_streams(self.server_max_streams)
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.frame_size)
            .max_header_list_size(SERVER_HEADER_LIST)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(REMEMBER_RESETS)
            .max_local_error_reset_streams(Some(MAX_STREAM_ERRORS))
            // A client may open and reset all the streams it is allowed within one read of ours.
            .max_pending_accept_reset_streams(self.server_max_streams as usize)
            .data_frame_budget(self.data_frame_budget);
        builder
    }
}
