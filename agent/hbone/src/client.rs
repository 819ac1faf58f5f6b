//! The client's end of a tunnel: one connection, one owner task, many streams.

use std::future::poll_fn;
use std::sync::{Arc, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use isthmus_http2::{Code as Reason, Connection, SendError};
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::error::{OpenError, QuiesceError, StreamError, TunnelError};
use crate::head::{Head, ResponseHead};
use crate::settings::Settings;
use crate::status::ConnectStatus;
use crate::stream::Stream;
use crate::tunnel::{
    Owner, StreamRef, Transport, TunnelCore, TunnelId, TunnelParts, TunnelState, take_apart,
};
use crate::usage::{StreamPermit, TunnelUsage};

/// A handle to a tunnel. Clones share it. The tunnel closes, with a GOAWAY, once its last stream has ended and either the
/// last handle was dropped or [`Self::close_gracefully`] was called.
#[derive(Debug, Clone)]
pub struct Tunnel(Arc<TunnelHandle>);

#[derive(Debug)]
struct TunnelHandle {
    core: Arc<TunnelCore>,
    usage: Arc<TunnelUsage>,
}

/// Starts a tunnel over an established connection. The first CONNECT does not wait for the peer's SETTINGS.
///
/// # Errors
/// When the keys of the connection's TLS session cannot be taken over.
pub fn start(transport: impl Transport, settings: &Settings, tasks: &Tasks) -> Result<Tunnel, TunnelError> {
    let http2 = Connection::client(settings.client());
    let owner = Owner::new(transport.into_link()?, http2, settings);
    Ok(run(owner, Arc::new(TunnelUsage::new(settings.client_max_streams)), tasks))
}

/// Goes on with a tunnel that was taken apart, in which `streams` streams are open: as many permits.
pub(crate) fn resumed<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    owner: Owner<S>,
    limit: usize,
    streams: usize,
    tasks: &Tasks,
) -> (Tunnel, Vec<StreamPermit>) {
    let usage = Arc::new(TunnelUsage::new(limit));
    let permits = (0..streams).filter_map(|_| usage.acquire(usize::MAX)).collect();
    (run(owner, usage, tasks), permits)
}

fn run<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    mut owner: Owner<S>,
    usage: Arc<TunnelUsage>,
    tasks: &Tasks,
) -> Tunnel {
    let core = Arc::clone(owner.core());
    let owner_usage = Arc::clone(&usage);
    tasks.spawn("tunnel client", async move {
        let usage = owner_usage;
        let reason = poll_fn(|cx| owner.poll(cx)).await;
        usage.set_ended();
        if reason == TunnelError::HandedOver {
            owner.hand_over();
        }
        tracing::debug!(%reason, streams = usage.active(), "client tunnel ended");
    });
    Tunnel(Arc::new(TunnelHandle { core, usage }))
}

// === impl Tunnel ===

impl Tunnel {
    /// Sends a CONNECT and waits for its answer, without a deadline: the caller sets one, as the peer may be dialling.
    ///
    /// # Errors
    /// When the tunnel has no stream left, or the answer is not 200; see [`OpenError::is_retryable`].
    pub async fn open(&self, head: &Head) -> Result<(Stream, ResponseHead), OpenError> {
        let permit = self.reserve().ok_or_else(|| self.unavailable())?;
        self.open_reserved(permit, head).await
    }

    pub(crate) async fn open_reserved(
        &self,
        permit: StreamPermit,
        head: &Head,
    ) -> Result<(Stream, ResponseHead), OpenError> {
        let stream = self.send_connect(permit, head)?;
        let answered = poll_fn(|cx| {
            let mut state = stream.core.lock();
            let Some(known) = state.stream(stream.id) else { return Poll::Ready(Err(OpenError::GoingAway)) };
            if let Some(answer) = known.answer.take() {
                return Poll::Ready(Ok(ResponseHead::from_response(&answer)));
            }
            if let Some(lost) = &known.lost {
                return Poll::Ready(Err(unanswered(lost, known.unprocessed)));
            }
            known.reader = Some(cx.waker().clone());
            Poll::Pending
        });
        let head = answered.await?;
        if head.status != ConnectStatus::OK {
            return Err(OpenError::Status(head.status));
        }
        Ok((Stream::new(stream), head))
    }

    fn send_connect(&self, permit: StreamPermit, head: &Head) -> Result<StreamRef, OpenError> {
        let mut state = self.lock();
        if state.is_closing() {
            return Err(OpenError::GoingAway);
        }
        let authority = head.authority.to_string();
        match state.open(&authority, &head.fields()) {
            Ok(id) => Ok(StreamRef::new(&self.0.core, id, Some(permit))),
            Err(SendError::Field) => Err(OpenError::Authority(authority)),
            Err(SendError::HeaderListSize) => Err(OpenError::HeaderListSize),
            Err(SendError::TooManyStreams) => Err(OpenError::Full),
            Err(_) => Err(OpenError::GoingAway),
        }
    }

    /// Whether a stream can be opened right now.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.is_alive() && self.active_streams() < self.limit()
    }

    /// Whether streams can be opened, now or once others have ended: the connection is open and no GOAWAY was received.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.0.usage.has_ended() && self.lock().is_open()
    }

    /// Streams that are open or being opened.
    #[must_use]
    pub fn active_streams(&self) -> usize {
        self.0.usage.active()
    }

    /// Maximum number of streams: the lower of our limit and the peer's.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.usage.limit().min(self.lock().peer_limit())
    }

    /// Since when no stream is open; `None` while one is.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        self.0.usage.idle_since()
    }

    /// Opens no more streams. The connection closes, with a GOAWAY, once the last one has ended.
    pub fn close_gracefully(&self) {
        self.lock().close();
    }

    /// Brings the tunnel to rest and takes it apart; see [`crate::handover`]. CONNECTs that await their answer may take
    /// `limit`. Dropped half way, the future lets the tunnel go on, or ends it when its streams have stopped already.
    ///
    /// # Errors
    /// When the tunnel does not come to rest, has ended, or is being taken apart already.
    pub async fn take_apart(&self, limit: Duration) -> Result<TunnelParts, QuiesceError> {
        let parts = take_apart(&self.0.core, limit).await?;
        Ok(TunnelParts { client_limit: Some(self.0.usage.limit()), ..parts })
    }

    /// Tells it from the other tunnels of this process.
    #[must_use]
    pub fn id(&self) -> TunnelId {
        TunnelId::of(&self.0.core)
    }

    /// Why the tunnel ended, once it has.
    #[must_use]
    pub fn ended(&self) -> Option<&TunnelError> {
        self.0.core.close_reason.get()
    }

    /// Reserves a stream without opening it yet.
    pub(crate) fn reserve(&self) -> Option<StreamPermit> {
        if !self.is_alive() {
            return None;
        }
        self.0.usage.acquire(self.limit())
    }

    /// The peer refused a stream: it allows no more than are open now.
    pub(crate) fn lower_limit(&self) {
        self.0.usage.lower_limit();
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn lock(&self) -> MutexGuard<'_, TunnelState> {
        self.0.core.lock()
    }

    fn unavailable(&self) -> OpenError {
        if self.is_alive() { OpenError::Full } else { OpenError::GoingAway }
    }
}

impl Drop for TunnelHandle {
    fn drop(&mut self) {
        self.core.lock().close();
    }
}

/// Why a CONNECT was not answered.
fn unanswered(lost: &StreamError, unprocessed: bool) -> OpenError {
    match lost {
        _ if unprocessed => OpenError::GoingAway,
        StreamError::Reset(Reason::REFUSED_STREAM) => OpenError::Refused,
        StreamError::Reset(reason) => OpenError::Reset(*reason),
        StreamError::Lost(error) => OpenError::Lost(error.clone()),
        StreamError::Finished => OpenError::GoingAway,
    }
}
