//! An owner that leaves its parts when it stops, and one that goes on from there.

use isthmus_http2::StreamId;
use isthmus_record::Opener;
use tokio::net::TcpStream;

use super::{EndsWithOwner, Owner};
use crate::error::ResumeError;
use crate::keepalive::Keepalive;
use crate::settings::Settings;
use crate::tunnel::idle::Idle;
use crate::tunnel::parts::{CopyParts, OwnerParts, TimerParts, TransportParts, TunnelParts, ago};

/// A tunnel that was put together: its owner, and the copies of its streams.
pub(crate) struct Resumed<S> {
    pub(crate) owner: Owner<S>,
    pub(crate) copies: Vec<(StreamId, CopyParts)>,
    /// Of a client: its own limit of streams.
    pub(crate) client_limit: Option<usize>,
}

impl<S: Send + 'static> Owner<S> {
    /// Leaves everything to the tunnel's state, after `poll` has returned `HandedOver`.
    pub(crate) fn hand_over(self) {
        let Self {
            core,
            io,
            opener,
            partial,
            // Delivered by the end of each turn.
            batch: _,
            keepalive,
            last_tick,
            // What is received from now on is processed by an owner that starts.
            started: _,
            // The tunnel would have ended.
            peer_closed: _,
            // The transport reports it again to the next that writes.
            write_error: _,
            unwritten: _,
            ending: _,
            idle,
            on_drop,
        } = self;
        on_drop.disarm();
        let (silence, pinged) = keepalive.into_parts();
        let parts = OwnerParts {
            transport: TransportParts::new(io),
            opener: opener.map(Opener::into_parts),
            received: partial,
            timers: TimerParts { silence, pinged, since_tick: last_tick.elapsed(), idle: idle.into_parts() },
        };
        core.lock().leave_owner(parts);
    }
}

impl TunnelParts {
    /// Puts the tunnel together over `io`; the transport is no longer among the parts.
    pub(crate) fn resume<S>(self, io: S, settings: &Settings) -> Result<Resumed<S>, ResumeError> {
        let state = self.into_state(settings)?;
        let TimerParts { silence, pinged, since_tick, idle } = state.timers;
        let owner = Owner {
            on_drop: EndsWithOwner::new(&state.core),
            core: state.core,
            io,
            opener: state.opener.map(Opener::from_parts).transpose()?,
            partial: state.received,
            batch: Vec::new(),
            keepalive: Keepalive::resumed(settings, silence, pinged),
            last_tick: ago(since_tick),
            started: false,
            peer_closed: false,
            write_error: None,
            unwritten: 0,
            ending: None,
            idle: Idle::resumed(settings, idle),
        };
        Ok(Resumed { owner, copies: state.copies, client_limit: state.client_limit })
    }

    /// The socket that the tunnel runs over, for the runtime of this thread.
    ///
    /// # Errors
    /// When the transport is no socket, or cannot be registered.
    pub fn take_socket(mut self) -> Result<(TcpStream, Self), ResumeError> {
        let nothing = TransportParts::Other(Box::new(()));
        match std::mem::replace(&mut self.transport, nothing) {
            TransportParts::Tcp(tcp) => Ok((TcpStream::from_std(tcp)?, self)),
            TransportParts::Other(_) => Err(ResumeError::Transport),
        }
    }
}
