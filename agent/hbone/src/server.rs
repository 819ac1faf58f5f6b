//! The server's end of a tunnel: accepts CONNECTs on one connection until it ends or is drained.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use isthmus_rt::drain;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::close_reason::CloseReason;
use crate::error::{OpenError, TunnelError};
use crate::head::{BadHead, Head, ResponseHead};
use crate::keepalive::{self, ActivityIo};
use crate::reason::Reason;
use crate::settings::Settings;
use crate::status::ConnectStatus;
use crate::stream::Stream;

/// How long the final GOAWAY of a tunnel that is closed at once may take to be written.
const GOAWAY_TIMEOUT: Duration = Duration::from_secs(1);

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
    pending: Option<(SendResponse<Bytes>, h2::RecvStream)>,
    close_reason: Arc<CloseReason>,
}

/// Drives one connection and passes each CONNECT to `on_request` as soon as it is complete.
///
/// When the drain begins the client is sent a GOAWAY; CONNECTs that it had sent before it received that are still passed
/// on, and the connection ends with its last stream. The same holds for a client whose preface is still in flight, since
/// CONNECTs may be in flight behind it. When the drain is forced the connection ends at once.
///
/// # Errors
/// When the connection ended otherwise than by the client closing it or by a graceful drain.
pub async fn serve<S>(
    io: S,
    settings: &Settings,
    drain: drain::Watch,
    mut on_request: impl FnMut(Request),
) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let close_reason = Arc::new(CloseReason::default());
    let io = ActivityIo::new(io, Arc::clone(&close_reason));
    let activity = io.activity();
    let preface =
        tokio::time::timeout(settings.handshake_timeout, settings.server().handshake::<_, Bytes>(io));
    let mut connection = tokio::select! {
        done = preface => done
            .map_err(|_| TunnelError::HandshakeTimeout(settings.handshake_timeout))?
            .map_err(|error| close_reason.record(TunnelError::from_h2(error)).clone())?,
        () = drain.forced() => return Err(TunnelError::Forced),
    };
    let pings = connection.ping_pong();
    let mut silent = pin!(keepalive::peer_silent(pings, activity, settings));
    let mut graceful = pin!(drain.graceful());
    let mut forced = pin!(drain.forced());
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => on_request(Request::new(request, respond, &close_reason)),
                Some(Err(error)) => break TunnelError::from_h2(error),
                None => return Ok(()),
            },
            () = &mut graceful, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            () = &mut forced => break TunnelError::Forced,
            error = &mut silent => break error,
        }
    };
    let ended = close_reason.record(ended).clone();
    if matches!(ended, TunnelError::Forced | TunnelError::KeepaliveTimeout(_)) {
        send_goaway(&mut connection).await;
    }
    Err(ended)
}

/// Sends a final GOAWAY, for as long as the peer reads.
async fn send_goaway<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S, Bytes>) {
    connection.abrupt_shutdown(h2::Reason::NO_ERROR);
    let _ = tokio::time::timeout(GOAWAY_TIMEOUT, poll_fn(|cx| connection.poll_closed(cx))).await;
}

// === impl Request ===

impl Request {
    fn new(
        request: http::Request<h2::RecvStream>,
        respond: SendResponse<Bytes>,
        close_reason: &Arc<CloseReason>,
    ) -> Self {
        let (parts, body) = request.into_parts();
        let responder = Responder { pending: Some((respond, body)), close_reason: Arc::clone(close_reason) };
        Self { head: Head::from_request(&parts), responder }
    }

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
        let Some((mut respond, body)) = self.pending.take() else { return Err(OpenError::GoingAway) };
        let response = ResponseHead::to_response(ConnectStatus::OK, baggage.as_deref());
        match respond.send_response(response, false) {
            Ok(send) => Ok(Stream::new(body, send, Arc::clone(&self.close_reason), None)),
            Err(error) if error.is_reset() => {
                Err(OpenError::Reset(error.reason().map_or(Reason::CANCEL, Reason::from)))
            }
            Err(error) => Err(OpenError::Lost(self.close_reason.tunnel_error(error))),
        }
    }

    /// Answers with a status other than 200 and ends the stream.
    pub fn reject(mut self, status: ConnectStatus) {
        if let Some((mut respond, _body)) = self.pending.take() {
            // Fails only when the client reset the stream, and then needs no answer.
            let _ = respond.send_response(ResponseHead::to_response(status, None), true);
        }
    }

    /// Resolves when the client resets the stream before it was answered, so that work for it can be abandoned.
    pub async fn cancelled(&mut self) {
        match self.pending.as_mut() {
            Some((respond, _)) => {
                let _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some((mut respond, _body)) = self.pending.take() {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    }
}
