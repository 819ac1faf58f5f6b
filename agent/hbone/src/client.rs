//! The client's end of a tunnel: one connection, one owner task, many streams.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::close_reason::CloseReason;
use crate::error::{OpenError, TunnelError};
use crate::head::{Head, ResponseHead};
use crate::keepalive::{self, ActivityIo};
use crate::reason::Reason;
use crate::settings::Settings;
use crate::status::ConnectStatus;
use crate::stream::Stream;
use crate::usage::{StreamPermit, TunnelUsage};

/// What a client tunnel runs over. The owner of the tunnel is a task, so what [`isthmus_rt::task::Spawnable`] requires of
/// a task is required of its transport here, and nowhere else in this crate.
pub trait Transport: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Transport for S {}

/// A handle to a tunnel. Clones share it. The tunnel closes, with a GOAWAY, once its last stream has ended and either the
/// last handle was dropped or [`Self::close_gracefully`] was called.
#[derive(Debug, Clone)]
pub struct Tunnel(Arc<TunnelState>);

#[derive(Debug)]
struct TunnelState {
    /// Taken when no more streams may be opened.
    sender: Mutex<Option<SendRequest<Bytes>>>,
    usage: Arc<TunnelUsage>,
    close_reason: Arc<CloseReason>,
}

/// Starts a tunnel over an established connection. The first CONNECT does not wait for the peer's SETTINGS.
///
/// # Errors
/// When the preface cannot be written.
pub async fn handshake<S: Transport>(
    io: S,
    settings: &Settings,
    tasks: &Tasks,
) -> Result<Tunnel, TunnelError> {
    let close_reason = Arc::new(CloseReason::default());
    let io = ActivityIo::new(io, Arc::clone(&close_reason));
    let activity = io.activity();
    let (sender, mut connection) = settings
        .client()
        .handshake::<_, Bytes>(io)
        .await
        .map_err(|error| close_reason.record(TunnelError::from_h2(error)).clone())?;
    let usage = Arc::new(TunnelUsage::new(settings.client_max_streams));
    let (pings, settings) = (connection.ping_pong(), settings.clone());
    let owner = (Arc::clone(&usage), Arc::clone(&close_reason));
    tasks.spawn("tunnel client", async move {
        let (usage, close_reason) = owner;
        let driven = poll_fn(|cx| usage.cpu.poll(Pin::new(&mut connection), cx));
        let ended = tokio::select! {
            ended = driven => ended.map_or_else(TunnelError::from_h2, |()| TunnelError::Closed),
            silent = keepalive::peer_silent(pings, activity, &settings) => silent,
        };
        usage.set_ended();
        // Recorded before the connection is dropped, which wakes the remaining streams.
        let reason = close_reason.record(ended);
        tracing::debug!(%reason, streams = usage.active(), "client tunnel ended");
    });
    Ok(Tunnel(Arc::new(TunnelState { sender: Mutex::new(Some(sender)), usage, close_reason })))
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
        let request = head.to_request()?;
        let mut sender = self.lock().clone().ok_or(OpenError::GoingAway)?;
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|error| self.send_error(error))?;
        let (response, send) = sender.send_request(request, false).map_err(|error| self.send_error(error))?;
        drop(sender);
        let (parts, recv) = response.await.map_err(|error| self.response_error(error))?.into_parts();
        let head = ResponseHead::from_response(&parts);
        if head.status != ConnectStatus::OK {
            return Err(OpenError::Status(head.status));
        }
        Ok((Stream::new(recv, send, Arc::clone(&self.0.close_reason), Some(permit)), head))
    }

    /// Whether a stream can be opened right now.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.is_alive() && self.active_streams() < self.limit()
    }

    /// Whether streams can be opened, now or once others have ended: the connection is open and no GOAWAY was received.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        if self.0.usage.has_ended() {
            return false;
        }
        let mut sender = self.lock();
        let Some(sender) = sender.as_mut() else { return false };
        let ready = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        !matches!(ready, Poll::Ready(Err(_)))
    }

    /// Streams that are open or being opened.
    #[must_use]
    pub fn active_streams(&self) -> usize {
        self.0.usage.active()
    }

    /// CPU time of the owner task over the last 100 ms, in thousandths of one core. The owner runs on one core at a time,
    /// which bounds what all streams together can carry.
    #[must_use]
    pub fn cpu_permille(&self) -> u64 {
        self.0.usage.cpu.permille()
    }

    /// Maximum number of streams: the lower of our limit and the peer's.
    #[must_use]
    pub fn limit(&self) -> usize {
        let peer_limit = self.lock().as_ref().map_or(0, SendRequest::current_max_send_streams);
        self.0.usage.limit().min(peer_limit)
    }

    /// Since when no stream is open; `None` while one is.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        self.0.usage.idle_since()
    }

    /// Opens no more streams. The connection closes, with a GOAWAY, once the last one has ended.
    pub fn close_gracefully(&self) {
        self.lock().take();
    }

    /// Why the tunnel ended, once it has.
    #[must_use]
    pub fn ended(&self) -> Option<&TunnelError> {
        self.0.close_reason.get()
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

    fn lock(&self) -> MutexGuard<'_, Option<SendRequest<Bytes>>> {
        self.0.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self) -> OpenError {
        if self.is_alive() { OpenError::Full } else { OpenError::GoingAway }
    }

    /// Translates an error from before the CONNECT was sent.
    fn send_error(&self, error: h2::Error) -> OpenError {
        if error.is_io() {
            OpenError::Lost(self.0.close_reason.tunnel_error(error))
        } else {
            OpenError::GoingAway
        }
    }

    /// Translates an error from while the answer was awaited.
    fn response_error(&self, error: h2::Error) -> OpenError {
        let reason = error.reason().map(Reason::from);
        match reason {
            Some(Reason::REFUSED_STREAM) if error.is_reset() => OpenError::Refused,
            Some(reason) if error.is_reset() => OpenError::Reset(reason),
            // The engine fails a stream with the peer's GOAWAY only if its id is above the GOAWAY's last stream id.
            _ if error.is_go_away() && error.is_remote() => OpenError::GoingAway,
            _ => OpenError::Lost(self.0.close_reason.tunnel_error(error)),
        }
    }
}
