//! The client's end of a tunnel: one connection, one owner task, many streams.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::client::SendRequest;
use isthmus_rt::task::Tasks;
use tokio::time::Instant;

use crate::alive::{self, Listening};
use crate::load::Load;
use crate::stream::Fate;
use crate::{Head, OpenError, ResponseHead, Settings, Stream, Transport, TunnelError};

/// A handle to a tunnel. Clones share it; the tunnel closes, with a GOAWAY, when the last handle is dropped or
/// [`Self::close_gracefully`] was called, and its last stream has ended.
#[derive(Debug, Clone)]
pub struct Tunnel(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    /// Taken when no more streams shall be opened.
    sender: Mutex<Option<SendRequest<Bytes>>>,
    usage: Arc<Usage>,
    fate: Arc<Fate>,
}

/// Who uses the tunnel. Streams keep this alive, but not the tunnel's sender.
#[derive(Debug)]
struct Usage {
    active: AtomicUsize,
    /// Our own limit, lowered when the peer refuses a stream below it.
    limit: AtomicUsize,
    ended: AtomicBool,
    idle_since: Mutex<Instant>,
    /// What the owner takes of its core.
    load: Load,
}

/// The right to one stream of a tunnel, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Usage>);

/// Starts a tunnel over an established connection. The first CONNECT need not wait for the peer's settings.
///
/// # Errors
/// When the preface cannot be written.
pub async fn handshake<S: Transport>(
    io: S,
    settings: &Settings,
    tasks: &Tasks,
) -> Result<Tunnel, TunnelError> {
    let io = Listening::new(io);
    let heard = io.heard();
    let (sender, mut connection) =
        settings.client().handshake::<_, Bytes>(io).await.map_err(TunnelError::from_h2)?;
    let usage = Arc::new(Usage {
        active: AtomicUsize::new(0),
        limit: AtomicUsize::new(settings.client_max_streams),
        ended: AtomicBool::new(false),
        idle_since: Mutex::new(Instant::now()),
        load: Load::new(),
    });
    let fate = Arc::new(Fate::default());
    let (pings, settings) = (connection.ping_pong(), settings.clone());
    let owner = (Arc::clone(&usage), Arc::clone(&fate));
    tasks.spawn("tunnel client", async move {
        let (usage, fate) = owner;
        let carried = poll_fn(|cx| usage.load.poll(Pin::new(&mut connection), cx));
        let ended = tokio::select! {
            ended = carried => ended.map_or_else(TunnelError::from_h2, |()| TunnelError::Closed),
            silent = alive::lost(pings, heard, &settings) => silent,
        };
        usage.ended.store(true, Ordering::Release);
        tracing::debug!(reason = %ended, "tunnel ended");
        // Before the connection is dropped, which wakes the streams that are left.
        fate.seal(ended);
    });
    Ok(Tunnel(Arc::new(Shared { sender: Mutex::new(Some(sender)), usage, fate })))
}

// === impl Tunnel ===

impl Tunnel {
    /// Sends a CONNECT and waits for its answer. Set a deadline: the peer may be dialling.
    ///
    /// # Errors
    /// When there is no stream left, or the answer is not 200; see [`OpenError::is_retryable`].
    pub async fn open(&self, head: &Head) -> Result<(Stream, ResponseHead), OpenError> {
        let permit = self.reserve().ok_or_else(|| self.why_not())?;
        self.open_reserved(permit, head).await
    }

    pub(crate) async fn open_reserved(
        &self,
        permit: Permit,
        head: &Head,
    ) -> Result<(Stream, ResponseHead), OpenError> {
        let request = head.to_request()?;
        let mut sender = self.lock().clone().ok_or(OpenError::GoingAway)?;
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(|error| self.unsent(error))?;
        let (response, send) = sender.send_request(request, false).map_err(|error| self.unsent(error))?;
        drop(sender);
        let (parts, recv) = response.await.map_err(|error| self.unanswered(error))?.into_parts();
        let head = ResponseHead::from_response(&parts);
        if head.status != 200 {
            return Err(OpenError::Status(head.status));
        }
        Ok((Stream::new(recv, send, Arc::clone(&self.0.fate), Some(permit)), head))
    }

    /// Whether a stream can be opened now.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.is_alive() && self.active_streams() < self.limit()
    }

    /// Whether streams can be opened, now or when others have ended: no GOAWAY was received and the connection lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        if self.0.usage.ended.load(Ordering::Acquire) {
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
        self.0.usage.active.load(Ordering::Acquire)
    }

    /// Thousandths of a core that the tunnel's owner takes. It has one core at most, whatever its streams need.
    #[must_use]
    pub fn busy(&self) -> u64 {
        self.0.usage.load.share()
    }

    /// How many streams there may be: the least of our limit and the peer's.
    #[must_use]
    pub fn limit(&self) -> usize {
        let peers = self.lock().as_ref().map_or(0, SendRequest::current_max_send_streams);
        self.0.usage.limit.load(Ordering::Acquire).min(peers)
    }

    /// Since when no stream is open; `None` while one is.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        let since = *self.0.usage.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        (self.active_streams() == 0).then_some(since)
    }

    /// Opens no more streams; the connection closes, with a GOAWAY, when the last one has ended.
    pub fn close_gracefully(&self) {
        self.lock().take();
    }

    /// Why the tunnel ended, once it has.
    #[must_use]
    pub fn ended(&self) -> Option<&TunnelError> {
        self.0.fate.get()
    }

    /// Takes a stream's place without opening it yet.
    pub(crate) fn reserve(&self) -> Option<Permit> {
        if !self.is_alive() {
            return None;
        }
        let (usage, limit) = (&self.0.usage, self.limit());
        let more = |active: usize| (active < limit).then_some(active + 1);
        usage.active.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Permit(Arc::clone(usage)))
    }

    /// The peer refused a stream: it has room for no more than are open now.
    pub(crate) fn lower_limit(&self) {
        let open = self.active_streams();
        self.0.usage.limit.fetch_min(open, Ordering::AcqRel);
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn lock(&self) -> MutexGuard<'_, Option<SendRequest<Bytes>>> {
        self.0.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn why_not(&self) -> OpenError {
        if self.is_alive() { OpenError::Full } else { OpenError::GoingAway }
    }

    /// An error before the CONNECT was handed over.
    fn unsent(&self, error: h2::Error) -> OpenError {
        if error.is_io() { OpenError::Lost(self.0.fate.why(error)) } else { OpenError::GoingAway }
    }

    fn unanswered(&self, error: h2::Error) -> OpenError {
        let reason = error.reason().map(crate::Reason::from);
        match reason {
            Some(crate::Reason::REFUSED_STREAM) if error.is_reset() => OpenError::Refused,
            Some(reason) if error.is_reset() => OpenError::Reset(reason),
            // The engine fails a stream with the peer's GOAWAY only when the GOAWAY says it was not looked at.
            _ if error.is_go_away() && error.is_remote() => OpenError::GoingAway,
            _ => OpenError::Lost(self.0.fate.why(error)),
        }
    }
}

// === impl Permit ===

impl Drop for Permit {
    fn drop(&mut self) {
        let mut since = self.0.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            *since = Instant::now();
        }
    }
}
