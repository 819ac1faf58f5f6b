//! One tunnel: the value that its owner and its streams share, its transport, and what is read and written.
//!
//! Client and server, one floor up, open and answer streams with it. It knows neither pools nor deadlines.

mod chunk;
mod ending;
mod idle;
mod owner;
mod parts;
mod queue;
mod send_buffer;
mod state;
mod transport;
mod window;

pub(crate) use owner::Owner;
pub use parts::TunnelParts;
pub(crate) use parts::{
    AppSocket, ConnectionWindowParts, CopyParts, KeyParts, RoundTripParts, StreamParts, TimerParts,
    TransportParts, WindowUseParts,
};
pub(crate) use queue::ReceiveQueue;
pub(crate) use state::{Sink, StoppedCopy, TunnelCore, TunnelState, take_apart};
pub(crate) use transport::Keys;
pub use transport::{Link, Transport};

use std::sync::Arc;

use isthmus_http2::StreamId;

use crate::usage::StreamPermit;

/// Frames that one read of an application fills at most.
pub(crate) const MAX_SLOTS: usize = send_buffer::MAX_SLOTS;

/// Tells the open tunnels of a process apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TunnelId(usize);

impl TunnelId {
    /// Unambiguous for as long as a handle to the tunnel exists.
    pub(crate) fn of(core: &Arc<TunnelCore>) -> Self {
        Self(Arc::as_ptr(core).addr())
    }
}

/// A stream's place in its tunnel. Dropped before both halves have ended, it resets the stream.
#[derive(Debug)]
pub(crate) struct StreamRef {
    pub(crate) core: Arc<TunnelCore>,
    pub(crate) id: StreamId,
    _permit: Option<StreamPermit>,
}

impl StreamRef {
    /// A stream that [`TunnelState`] knows already.
    pub(crate) fn new(core: &Arc<TunnelCore>, id: StreamId, permit: Option<StreamPermit>) -> Self {
        Self { core: Arc::clone(core), id, _permit: permit }
    }
}

impl Drop for StreamRef {
    fn drop(&mut self) {
        self.core.lock().remove_stream(self.id);
    }
}
