//! HTTP/2 settings and timeouts of both ends of a tunnel.

use std::time::Duration;

use isthmus_http2 as http2;

use crate::memory::MemoryBudget;
use crate::peer_budget::PeerTunnel;

/// Settings of a tunnel. Where a default differs from ztunnel's, its doc comment says why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Bytes a peer may send on a new stream before we release credit. 64 KiB.
    pub stream_window: u32,
    /// To which a stream's window may grow while its reader takes a whole window in less than two round trips. 4 MiB.
    pub max_stream_window: u32,
    /// Bytes a peer may send on all streams of a tunnel before we release credit. 256 KiB. It grows with the windows of
    /// streams, and by what streams hold whose applications do not read, so that these do not stop the others.
    pub connection_window: u32,
    /// Bytes that one tunnel may hold: the window of its connection and what waits to be written. 32 MiB, which is a full
    /// window of every stream and half as much for streams that have grown.
    pub tunnel_memory: usize,
    /// The budget of the pod that the tunnels are for.
    pub memory: MemoryBudget,
    /// Of a server: the peer's budget.
    pub peer: Option<PeerTunnel>,
    /// How long a server keeps a tunnel without streams. 10 min, twice what clients keep one for.
    pub server_idle: Duration,
    /// The same while the peer has many tunnels. 10 s.
    pub server_idle_crowded: Duration,
    /// Largest DATA frame we accept. 1 MiB, as upstream: a peer that writes one frame per flush is bounded by it.
    pub frame_size: u32,
    /// Streams that a client opens on one tunnel at most; fewer if the peer allows fewer. 100.
    pub client_max_streams: usize,
    /// Streams that a server lets a client open on one tunnel. 200.
    pub server_max_streams: u32,
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
        Self {
            stream_window: MIB / 16,
            max_stream_window: 4 * MIB,
            connection_window: MIB / 4,
            tunnel_memory: 32 * MIB as usize,
            memory: MemoryBudget::unlimited(),
            peer: None,
            server_idle: Duration::from_secs(600),
            server_idle_crowded: Duration::from_secs(10),
            frame_size: MIB,
            client_max_streams: 100,
            server_max_streams: 200,
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

impl Settings {
    pub(crate) fn client(&self) -> http2::Settings {
        http2::Settings { max_header_list_size: CLIENT_HEADER_LIST, ..self.both() }
    }

    pub(crate) fn server(&self) -> http2::Settings {
        http2::Settings { max_header_list_size: SERVER_HEADER_LIST, ..self.both() }
    }

    fn both(&self) -> http2::Settings {
        http2::Settings {
            max_concurrent_streams: self.server_max_streams,
            stream_window: self.stream_window,
            // The least: the tunnel raises it as the budgets allow.
            connection_window: 0,
            max_frame_size: self.frame_size,
            initial_send_streams: u32::try_from(self.client_max_streams).unwrap_or(u32::MAX),
            ..http2::Settings::default()
        }
    }
}
