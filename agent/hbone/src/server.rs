//! The server's end of a tunnel: accepts CONNECTs on one connection until it ends or is drained.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use isthmus_http2::{Code as Reason, Connection};
use isthmus_rt::drain;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::{OpenError, QuiesceError, StreamError, TunnelError};
use crate::head::{BadHead, Head, ResponseHead};
use crate::settings::Settings;
use crate::status::ConnectStatus;
use crate::stream::Stream;
use crate::tunnel::{Owner, StreamRef, Transport, TunnelCore, TunnelId, TunnelParts, take_apart};

/// A CONNECT that awaits its answer.
#[derive(Debug)]
pub struct Request {
    /// The parsed request, or why it is malformed.
    pub head: Result<Head, BadHead>,
    responder: Responder,
}

/// Answers a CONNECT. Dropped without an answer it resets the stream with REFUSED_STREAM, so that the client may retry
/// elsewhere.
#[derive(Debug)]
pub struct Responder {
    /// Taken with the answer.
    stream: Option<StreamRef>,
}

/// The server's end of a tunnel, to be run with [`Self::serve`].
#[derive(Debug)]
pub struct Server<S> {
    owner: Owner<S>,
    handshake_timeout: Duration,
    /// The client's preface has arrived.
    ready: bool,
}

/// Takes one server's end of a tunnel apart while [`Server::serve`] runs.
#[derive(Debug, Clone)]
pub struct Control(Arc<TunnelCore>);

/// Drives one connection and passes each CONNECT to `on_request` as soon as it is complete; see [`Server::serve`].
///
/// # Errors
/// When the connection ended otherwise than by the client closing it or by a graceful drain.
pub async fn serve<T: Transport>(
    transport: T,
    settings: &Settings,
    drain: drain::Watch,
    on_request: impl FnMut(Request),
) -> Result<(), TunnelError> {
    Server::new(transport, settings)?.serve(drain, on_request).await
}

/// Tells a client that it is not served, and why, and closes its connection.
///
/// # Errors
/// When the keys of the connection's TLS session cannot be taken over.
pub async fn refuse<T: Transport>(transport: T, settings: &Settings, why: &str) -> Result<(), TunnelError> {
    let http2 = Connection::server(settings.server());
    let mut owner = Owner::new(transport.into_link()?, http2, settings);
    owner.refuse(why);
    poll_fn(|cx| owner.poll(cx)).await;
    Ok(())
}

/// Runs the owner and passes on the requests that it has received.
fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    owner: &mut Owner<S>,
    cx: &mut Context<'_>,
    on_request: &mut impl FnMut(Request),
) -> Poll<TunnelError> {
    let polled = owner.poll(cx);
    loop {
        let core = Arc::clone(owner.core());
        let Some((id, head)) = core.lock().next_request() else { return polled };
        let head = Head::from_request(&head);
        let stream = Some(StreamRef::new(&core, id, None));
        on_request(Request { head, responder: Responder { stream } });
    }
}

// === impl Server ===

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Server<S> {
    /// The server's end over an established connection.
    ///
    /// # Errors
    /// When the keys of the connection's TLS session cannot be taken over.
    pub fn new(transport: impl Transport<Io = S>, settings: &Settings) -> Result<Self, TunnelError> {
        let http2 = Connection::server(settings.server());
        let owner = Owner::new(transport.into_link()?, http2, settings);
        Ok(Self { owner, handshake_timeout: settings.handshake_timeout, ready: false })
    }

    /// Goes on with a tunnel that was taken apart.
    pub(crate) fn resumed(owner: Owner<S>, settings: &Settings) -> Self {
        Self { owner, handshake_timeout: settings.handshake_timeout, ready: true }
    }

    /// Takes the tunnel apart while it is served.
    #[must_use]
    pub fn control(&self) -> Control {
        Control(Arc::clone(self.owner.core()))
    }

    /// Drives the connection and passes each CONNECT to `on_request` as soon as it is complete.
    ///
    /// When the drain begins the client is sent a GOAWAY; CONNECTs that it had sent before it received that are still
    /// passed on, and the connection ends with its last stream. The same holds for a client whose preface is still in
    /// flight, since CONNECTs may be in flight behind it. When the drain is forced the connection ends at once.
    ///
    /// # Errors
    /// When the connection ended otherwise than by the client closing it or by a graceful drain;
    /// [`TunnelError::HandedOver`] when it was taken apart.
    pub async fn serve(
        self,
        drain: drain::Watch,
        mut on_request: impl FnMut(Request),
    ) -> Result<(), TunnelError> {
        let Self { mut owner, handshake_timeout, mut ready } = self;
        let mut preface = pin!(tokio::time::sleep(handshake_timeout));
        let mut graceful = pin!(drain.graceful());
        let mut forced = pin!(drain.forced());
        let mut draining = false;
        let ended = loop {
            tokio::select! {
                ended = poll_fn(|cx| drive(&mut owner, cx, &mut on_request)) => break ended,
                () = &mut graceful, if !draining => {
                    draining = true;
                    owner.core().lock().drain();
                }
                () = &mut forced => {
                    owner.close(TunnelError::Forced);
                    break poll_fn(|cx| owner.poll(cx)).await;
                }
                () = &mut preface, if !ready => {
                    ready = owner.core().lock().peer_is_ready;
                    if !ready {
                        return Err(TunnelError::HandshakeTimeout(handshake_timeout));
                    }
                }
            }
        };
        match ended {
            TunnelError::Closed => Ok(()),
            TunnelError::HandedOver => {
                owner.hand_over();
                Err(TunnelError::HandedOver)
            }
            ended => Err(ended),
        }
    }
}

// === impl Control ===

impl Control {
    /// Tells the tunnel from the other ones of this process.
    #[must_use]
    pub fn id(&self) -> TunnelId {
        TunnelId::of(&self.0)
    }

    /// How many streams are open.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.0.lock().stream_count()
    }

    /// Brings the tunnel to rest and takes it apart; see [`crate::handover`]. What is under way may take `limit`. Dropped
    /// half way, the future lets the tunnel go on, or ends it when its streams have stopped already.
    ///
    /// # Errors
    /// When the tunnel does not come to rest, has ended, or is being taken apart already.
    pub async fn take_apart(&self, limit: Duration) -> Result<TunnelParts, QuiesceError> {
        take_apart(&self.0, limit).await
    }
}

// === impl Request ===

impl Request {
    /// Answers 200 and starts the stream.
    ///
    /// # Errors
    /// When the client reset the stream, or the tunnel ended, meanwhile.
    pub fn accept(self, baggage: Option<String>) -> Result<Stream, OpenError> {
        self.responder.accept(baggage)
    }

    /// Answers with a status other than 200 and ends the stream.
    pub fn reject(self, status: ConnectStatus) {
        self.responder.reject(status);
    }

    /// The request, and the means to answer it.
    pub fn into_parts(self) -> (Result<Head, BadHead>, Responder) {
        (self.head, self.responder)
    }
}

// === impl Responder ===

impl Responder {
    /// Answers 200 and starts the stream.
    ///
    /// # Errors
    /// When the client reset the stream, or the tunnel ended, meanwhile.
    pub fn accept(mut self, baggage: Option<String>) -> Result<Stream, OpenError> {
        let Some(stream) = self.stream.take() else { return Err(OpenError::GoingAway) };
        let fields = ResponseHead::answer_fields(baggage.as_deref());
        let answered = stream.core.lock().answer(stream.id, ConnectStatus::OK.as_u16(), fields.as_slice());
        match answered {
            Ok(()) => Ok(Stream::new(stream)),
            Err(StreamError::Reset(reason)) => Err(OpenError::Reset(reason)),
            Err(StreamError::Lost(error)) => Err(OpenError::Lost(error)),
            Err(StreamError::Finished) => Err(OpenError::GoingAway),
        }
    }

    /// Answers with a status other than 200 and ends the stream.
    pub fn reject(mut self, status: ConnectStatus) {
        if let Some(stream) = self.stream.take() {
            // Fails only when the client reset the stream, and then needs no answer.
            let _ = stream.core.lock().answer(stream.id, status.as_u16(), &[]);
        }
    }

    /// Resolves when the client resets the stream before it was answered, so that work for it can be abandoned.
    pub async fn cancelled(&mut self) {
        let Some(stream) = &self.stream else { return std::future::pending().await };
        poll_fn(|cx| {
            let mut state = stream.core.lock();
            match state.stream(stream.id) {
                Some(known) if known.lost.is_none() => {
                    known.writer = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.core.lock().reset(stream.id, Reason::REFUSED_STREAM);
        }
    }
}
