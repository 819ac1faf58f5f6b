//! What both ends of a tunnel advertise and keep to.

use std::time::Duration;

/// Settings of a tunnel. Where a default differs from the field's, its field says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes a peer may send on one stream before we release credit. 4 MiB.
    pub stream_window: u32,
    /// Bytes a peer may send on all streams of a tunnel before we release credit.
    ///
    /// A stream whose application does not read holds up to one stream window of it. The default is therefore one
    /// stream window for every stream a client opens (100 × 4 MiB): no number of stalled streams can stop the others.
    /// It is memory only when applications stall, and then no more than the kernel would hold for as many sockets.
    pub connection_window: u32,
    /// The largest DATA frame we take. 1 MiB: the engine writes one frame per flush, so frame size is throughput.
    pub frame_size: u32,
    /// Bytes of a stream that may wait in memory to be written to the tunnel. 1 MiB.
    pub send_buffer: usize,
    /// Streams a client opens at most on one tunnel, less when the peer allows fewer. 100.
    pub client_max_streams: usize,
    /// Streams a server lets a client open on one tunnel. 200.
    pub server_max_streams: u32,
    /// How far small DATA frames may pile up unread on one tunnel before the engine ends it: a frame of less than 256
    /// bytes counts 256 minus its length until it is read.
    ///
    /// The engine's own default ends tunnels with ordinary small writes on them; unlimited would let a peer cost us one
    /// queue entry per byte. The default is the connection window: what small frames can cost is then about what the
    /// window's bytes can.
    pub data_frame_budget: usize,
    /// A PING is sent when nothing was received for this long. 10 s.
    pub ping_interval: Duration,
    /// The tunnel is dropped when nothing at all was received for this long after the PING. 20 s.
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

/// Header bytes a client takes in an answer.
const CLIENT_HEADER_LIST: u32 = 16 * 1024;
/// Header bytes a server takes in a request.
const SERVER_HEADER_LIST: u32 = 64 * 1024;
/// Streams we reset are remembered for as long as frames sent before the reset may still arrive, and enough of them for
/// a whole tunnel's applications to go away at once: a frame for a forgotten stream counts as the peer's mistake.
const REMEMBER_RESETS: Duration = Duration::from_secs(30);
const REMEMBERED_RESETS: usize = 1024;
/// A peer's mistakes that cost a stream, over the life of a tunnel.
const MAX_MISTAKES: usize = 10_000;

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
            .max_local_error_reset_streams(Some(MAX_MISTAKES))
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
            .max_local_error_reset_streams(Some(MAX_MISTAKES))
            // A client may open and give up as many streams as it is allowed in one read of ours.
            .max_pending_accept_reset_streams(self.server_max_streams as usize)
            .data_frame_budget(self.data_frame_budget);
        builder
    }
}
