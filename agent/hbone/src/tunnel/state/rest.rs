//! Bringing a tunnel to rest: nothing new is begun, what is begun comes to its end or under a copy, and then the owner and
//! the copies stop and leave their parts here.
//!
//! ```text
//! running → settling → stopping → taken apart
//!    └─────────┘ limit
//! ```

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use isthmus_http2::StreamId;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{StreamState, TunnelCore, TunnelState};
use crate::copy::outcome::Side;
use crate::error::{QuiesceError, StreamError, TunnelError};
use crate::tunnel::TunnelParts;
use crate::tunnel::parts::OwnerParts;

/// How far a tunnel has come to rest.
#[derive(Default)]
pub(super) struct Rest {
    phase: Phase,
    /// Takes the tunnel apart once it can be.
    collector: Option<Waker>,
    /// What the owner has left.
    pub(super) owner: Option<OwnerParts>,
    /// When the owner and the copies were told to stop.
    pub(super) stopped: Option<Instant>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    /// Nothing new is begun.
    Settling,
    /// The owner and the copies stop.
    Stopping,
}

/// What a copy has left.
pub(crate) struct StoppedCopy {
    pub(crate) tcp: Arc<TcpStream>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) slots: usize,
    pub(crate) send_done: bool,
    pub(crate) refused: Option<StreamError>,
    pub(crate) receive_done: bool,
    pub(crate) closed_by: Option<Side>,
    pub(crate) write_error: Option<std::io::Error>,
    /// The copy itself is gone, and nothing else refers to the socket.
    pub(crate) released: bool,
}

/// One attempt to take a tunnel apart. Dropped before its end it lets a tunnel that settles go on, and ends one that has
/// stopped in part.
struct Attempt<'a>(Option<&'a TunnelCore>);

/// Takes a tunnel apart. What is not answered yet may take `limit`.
pub(crate) async fn take_apart(core: &TunnelCore, limit: Duration) -> Result<TunnelParts, QuiesceError> {
    core.lock().settle()?;
    let mut attempt = Attempt(Some(core));
    tokio::select! {
        biased;
        stopped = poll_fn(|cx| core.poll_stop(cx)) => stopped?,
        () = tokio::time::sleep(limit) => {
            let unanswered = core.lock().unsettled().count();
            return Err(QuiesceError::Unsettled { limit, unanswered });
        }
    }
    let parts = poll_fn(|cx| core.poll_collect(cx)).await;
    if parts.is_ok() {
        attempt.0 = None;
    }
    parts
}

// === impl Attempt ===

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Some(core) = self.0 else { return };
        let mut state = core.lock();
        match state.rest.phase {
            Phase::Running => {}
            Phase::Settling => {
                state.rest.phase = Phase::Running;
                // Requests that have arrived meanwhile are passed on.
                state.wake_owner();
            }
            Phase::Stopping => {
                let error = core.close_reason.record(TunnelError::HandedOver).clone();
                state.end(&error);
                state.discard_stopped();
            }
        }
    }
}

// === impl TunnelCore ===

impl TunnelCore {
    /// Waits until nothing is under way, and stops the owner and the copies.
    fn poll_stop(&self, cx: &mut Context<'_>) -> Poll<Result<(), QuiesceError>> {
        let mut state = self.lock();
        state.check_alive()?;
        if !state.is_settled() {
            state.rest.collector = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.rest.phase = Phase::Stopping;
        state.rest.stopped = Some(Instant::now());
        self.stopping.store(true, Ordering::Release);
        state.wake_owner();
        state.streams.values_mut().for_each(StreamState::wake);
        state.blocked.drain(..).for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }

    /// Waits until all have stopped.
    fn poll_collect(&self, cx: &mut Context<'_>) -> Poll<Result<TunnelParts, QuiesceError>> {
        let mut state = self.lock();
        state.check_alive()?;
        if !state.has_stopped() {
            state.rest.collector = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.leave_lingering();
        let ended = self.close_reason.record(TunnelError::HandedOver).clone();
        let state = std::mem::replace(&mut *state, TunnelState::ended(ended));
        Poll::Ready(state.into_parts())
    }
}

// === impl TunnelState ===

impl TunnelState {
    fn settle(&mut self) -> Result<(), QuiesceError> {
        self.check_alive()?;
        if self.rest.phase != Phase::Running {
            return Err(QuiesceError::Underway);
        }
        self.rest.phase = Phase::Settling;
        Ok(())
    }

    fn check_alive(&self) -> Result<(), QuiesceError> {
        match &self.ended {
            Some(error) => Err(QuiesceError::Ended(error.clone())),
            None => Ok(()),
        }
    }

    /// Streams that are neither under a copy nor over nor a request that was not passed on.
    fn unsettled(&self) -> impl Iterator<Item = StreamId> {
        let waits = |id: &StreamId| self.requests.iter().any(|(request, _)| request == id);
        self.streams
            .iter()
            .filter(move |(id, stream)| !stream.is_copied() && !stream.lingers && !waits(id))
            .map(|(id, _)| *id)
    }

    fn is_settled(&self) -> bool {
        self.peer_is_ready && self.unsettled().next().is_none()
    }

    /// Whether copies are to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.rest.phase == Phase::Stopping && self.ended.is_none()
    }

    fn has_stopped(&self) -> bool {
        let has_stopped = |stream: &StreamState| match &stream.stopped {
            Some(copy) => copy.released,
            None => stream.lingers || !stream.is_copied(),
        };
        self.rest.owner.is_some() && self.streams.values().all(has_stopped)
    }

    /// A stream came under a copy.
    pub(crate) fn copy_started(&mut self) {
        self.rest.wake();
    }

    /// A stream is over, and its application is read from until it closes. Taking the tunnel apart does not wait for that.
    pub(crate) fn linger(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.lingers = true;
            self.rest.wake();
        }
    }

    /// What lingers goes on in this process: the tunnel has nothing to do with it any more.
    fn leave_lingering(&mut self) {
        let lingering = self.streams.iter().filter(|(_, stream)| stream.lingers).map(|(id, _)| *id);
        for id in lingering.collect::<Vec<_>>() {
            self.remove_stream(id);
        }
    }

    /// The owner stops.
    pub(in crate::tunnel) fn leave_owner(&mut self, owner: OwnerParts) {
        // When the attempt to take the tunnel apart was given up, its parts are not needed.
        if self.ended.is_none() {
            self.rest.owner = Some(owner);
            self.rest.wake();
        }
    }

    /// A copy stops. Its stream stays until the tunnel is taken apart.
    pub(crate) fn leave_copy(&mut self, id: StreamId, copy: StoppedCopy) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.stopped = Some(copy);
        }
    }

    /// Whether the handle of a stream goes because its copy has stopped.
    pub(super) fn release_stopped(&mut self, id: StreamId) -> bool {
        let Some(copy) = self.streams.get_mut(&id).and_then(|stream| stream.stopped.as_mut()) else {
            return false;
        };
        copy.released = true;
        self.rest.wake();
        true
    }

    /// The attempt has failed: applications whose copies have stopped are reset.
    fn discard_stopped(&mut self) {
        self.rest.owner = None;
        self.streams.retain(|_, stream| match stream.stopped.take() {
            Some(copy) => {
                let _ = copy.tcp.set_zero_linger();
                false
            }
            None => true,
        });
    }
}

// === impl StreamState ===

impl StreamState {
    /// Whether a copy reads and writes it.
    fn is_copied(&self) -> bool {
        self.sink.is_some() || self.discards || self.stopped.is_some()
    }
}

// === impl Rest ===

impl Rest {
    /// Whether nothing new may be begun.
    pub(super) fn has_begun(&self) -> bool {
        self.phase != Phase::Running
    }

    /// What the collector waits for may have happened.
    pub(super) fn wake(&mut self) {
        self.collector.take().into_iter().for_each(Waker::wake);
    }
}
