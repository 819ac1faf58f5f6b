//! Stopping a copy between two connections, and going on with it.

use std::io;
use std::net;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{Copy, Direction};
use crate::copy::outcome::{CopyError, CopyOutcome, Side};
use crate::copy::read_buffer::ReadBuffer;
use crate::error::{QuiesceError, StreamError, TunnelError};
use crate::tunnel::AppSocket;

/// Stops one copy between two connections while it runs. Clones stop the same one.
#[derive(Debug, Clone, Default)]
pub struct PlainControl(Arc<Mutex<ControlState>>);

#[derive(Debug, Default)]
struct ControlState {
    /// The copy's task.
    waker: Option<Waker>,
    /// Where the parts are wanted.
    wanted: Option<oneshot::Sender<Result<PlainParts, QuiesceError>>>,
    ended: bool,
}

/// Tells a control that the copy has ended, or was dropped.
pub(in crate::copy) struct EndOnDrop<'a>(&'a PlainControl);

/// A copy that has stopped. Dropped, it resets both connections, unless they came from another process.
#[derive(Debug)]
pub struct PlainParts {
    pub(crate) local: AppSocket,
    pub(crate) remote: AppSocket,
    pub(crate) to_remote: DirectionParts,
    pub(crate) to_local: DirectionParts,
    pub(crate) closed_by: Option<Side>,
}

/// One direction.
#[derive(Debug)]
pub(crate) struct DirectionParts {
    /// What was read and not written.
    pub(crate) unwritten: Bytes,
    /// The number of the error behind it.
    pub(crate) read_error: Option<i32>,
    pub(crate) bytes: u64,
    pub(crate) eof: bool,
    pub(crate) done: bool,
    pub(crate) refused: bool,
}

/// What is left of the errors of a socket that are none of the system.
const EIO: i32 = 5;

// === impl PlainControl ===

impl PlainControl {
    /// Stops the copy, at once, and takes it apart.
    ///
    /// # Errors
    /// When it has ended, or is being taken apart already.
    pub async fn take_apart(&self) -> Result<PlainParts, QuiesceError> {
        let ended = || QuiesceError::Ended(TunnelError::Closed);
        let (wanted, parts) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.ended {
                return Err(ended());
            }
            if state.wanted.is_some() {
                return Err(QuiesceError::Underway);
            }
            state.wanted = Some(wanted);
            state.waker.take().into_iter().for_each(Waker::wake);
        }
        parts.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Ends the control with the copy.
    pub(in crate::copy) fn end_on_drop(&self) -> EndOnDrop<'_> {
        EndOnDrop(self)
    }

    /// Whether the copy is to stop; its task is woken when it is.
    pub(super) fn is_wanted(&self, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        if state.wanted.is_none() && !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        state.wanted.is_some()
    }

    fn leave(&self, parts: Result<PlainParts, QuiesceError>) {
        let wanted = {
            let mut state = self.lock();
            state.ended = true;
            state.wanted.take()
        };
        // When the attempt was given up, the parts reset the connections.
        if let Some(wanted) = wanted {
            let _ = wanted.send(parts);
        }
    }

    fn lock(&self) -> MutexGuard<'_, ControlState> {
        // A poisoned lock is still consistent: no code panics between two related changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        // Who waits for the parts is told that there are none.
        state.wanted = None;
        state.waker = None;
    }
}

// === impl Copy ===

impl Copy {
    /// Leaves the connections to whom they are wanted by.
    pub(super) fn stop(&mut self, control: &PlainControl) -> CopyOutcome {
        let error = CopyError::Stream(StreamError::Lost(TunnelError::HandedOver));
        let outcome = self.outcome(Some(error));
        control.leave(self.take_apart().map_err(QuiesceError::from));
        outcome
    }

    fn take_apart(&mut self) -> io::Result<PlainParts> {
        let detached = |tcp: Option<TcpStream>| {
            tcp.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?.into_std().map(AppSocket::new)
        };
        let (local, remote) = (detached(self.local.take())?, detached(self.remote.take())?);
        let to_remote = std::mem::replace(&mut self.to_remote, Direction::new()).into_parts();
        let to_local = std::mem::replace(&mut self.to_local, Direction::new()).into_parts();
        Ok(PlainParts { local, remote, to_remote, to_local, closed_by: self.closed_by })
    }

    /// Goes on with a copy that was stopped.
    pub(in crate::copy) fn resumed(parts: PlainParts) -> io::Result<Self> {
        let PlainParts { local, remote, to_remote, to_local, closed_by } = parts;
        let attached = |socket: AppSocket| -> io::Result<TcpStream> {
            let tcp: net::TcpStream = socket.take().ok_or(io::ErrorKind::NotConnected)?;
            // While it travelled, a lost socket was to be reset.
            socket2::SockRef::from(&tcp).set_linger(None)?;
            TcpStream::from_std(tcp)
        };
        Ok(Self {
            local: Some(attached(local)?),
            remote: Some(attached(remote)?),
            to_remote: Direction::from_parts(to_remote),
            to_local: Direction::from_parts(to_local),
            closed_by,
        })
    }
}

// === impl Direction ===

impl Direction {
    fn into_parts(self) -> DirectionParts {
        let Self { buffer, unwritten, bytes, eof, done, refused } = self;
        let read_error = buffer.into_error().map(|error| error.raw_os_error().unwrap_or(EIO));
        DirectionParts { unwritten, read_error, bytes, eof, done, refused }
    }

    fn from_parts(parts: DirectionParts) -> Self {
        let DirectionParts { unwritten, read_error, bytes, eof, done, refused } = parts;
        let buffer = ReadBuffer::with_error(read_error.map(io::Error::from_raw_os_error));
        Self { buffer, unwritten, bytes, eof, done, refused }
    }
}
