//! The server's end of a tunnel: takes CONNECTs off one connection until it ends or is drained.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use isthmus_rt::drain;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::alive::{self, Listening};
use crate::stream::Fate;
use crate::{BadHead, Head, OpenError, Reason, ResponseHead, Settings, Stream, TunnelError};

/// How long the last frames of a tunnel that is ended at once may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A CONNECT that waits for its answer.
#[derive(Debug)]
pub struct Request {
    /// What it asks for, or what is wrong with it.
    pub head: Result<Head, BadHead>,
    responder: Responder,
}

/// Answers a CONNECT. Dropped without an answer it refuses the stream as not looked at, so that the client may try
/// again elsewhere.
#[derive(Debug)]
pub struct Responder {
    pending: Option<(SendResponse<Bytes>, h2::RecvStream)>,
    fate: Arc<Fate>,
}

/// Drives one connection and hands out its CONNECTs, each as soon as it is complete.
///
/// When the drain begins the client is told to open no more streams; those it had opened before it knew are still
/// handed out, and the connection ends when the last stream has. That goes for a client whose preface is still on its
/// way, too: what it sends behind it is in flight already. When the drain is forced it ends at once.
///
/// # Errors
/// When the connection ended otherwise than by the client's or the drain's wish.
pub async fn serve<S>(
    io: S,
    settings: &Settings,
    drain: drain::Watch,
    mut on_request: impl FnMut(Request),
) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let io = Listening::new(io);
    let heard = io.heard();
    let fate = Arc::new(Fate::default());
    let preface =
        tokio::time::timeout(settings.handshake_timeout, settings.server().handshake::<_, Bytes>(io));
    let mut connection = tokio::select! {
        done = preface => done
            .map_err(|_| TunnelError::HandshakeTimeout(settings.handshake_timeout))?
            .map_err(TunnelError::from_h2)?,
        () = drain.forced() => return Err(TunnelError::Forced),
    };
    let pings = connection.ping_pong();
    let mut silent = pin!(alive::lost(pings, heard, settings));
    let mut graceful = pin!(drain.graceful());
    let mut forced = pin!(drain.forced());
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => on_request(Request::new(request, respond, &fate)),
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
    fate.seal(ended.clone());
    if matches!(ended, TunnelError::Forced | TunnelError::KeepaliveTimeout(_)) {
        last_words(&mut connection).await;
    }
    Err(ended)
}

/// Says goodbye, for as long as the peer listens.
async fn last_words<S: AsyncRead + AsyncWrite + Unpin>(connection: &mut Connection<S, Bytes>) {
    connection.abrupt_shutdown(h2::Reason::NO_ERROR);
    let _ = tokio::time::timeout(LAST_WORDS, poll_fn(|cx| connection.poll_closed(cx))).await;
}

// === impl Request ===

impl Request {
    fn new(request: http::Request<h2::RecvStream>, respond: SendResponse<Bytes>, fate: &Arc<Fate>) -> Self {
        let (parts, body) = request.into_parts();
        let responder = Responder { pending: Some((respond, body)), fate: Arc::clone(fate) };
        Self { head: Head::from_request(&parts), responder }
    }

    /// Answers 200 and begins the stream.
    ///
    /// # Errors
    /// When the client gave up meanwhile.
    pub fn accept(self, baggage: Option<String>) -> Result<Stream, OpenError> {
        self.responder.accept(baggage)
    }

    /// Answers with any other status and ends the stream.
    pub fn reject(self, status: u16) {
        self.responder.reject(status);
    }

    /// What it asks for, and the means to answer.
    pub fn into_parts(self) -> (Result<Head, BadHead>, Responder) {
        (self.head, self.responder)
    }
}

// === impl Responder ===

impl Responder {
    /// Answers 200 and begins the stream.
    ///
    /// # Errors
    /// When the client gave up meanwhile.
    pub fn accept(mut self, baggage: Option<String>) -> Result<Stream, OpenError> {
        let Some((mut respond, body)) = self.pending.take() else { return Err(OpenError::GoingAway) };
        let response = ResponseHead::to_response(200, baggage.as_deref());
        match respond.send_response(response, false) {
            Ok(send) => Ok(Stream::new(body, send, Arc::clone(&self.fate), None)),
            Err(error) if error.is_reset() => {
                Err(OpenError::Reset(error.reason().map_or(Reason::CANCEL, Reason::from)))
            }
            Err(error) => Err(OpenError::Lost(self.fate.why(error))),
        }
    }

    /// Answers with any other status and ends the stream.
    pub fn reject(mut self, status: u16) {
        if let Some((mut respond, _body)) = self.pending.take() {
            // The client may have given up; then nobody waits for the answer.
            let _ = respond.send_response(ResponseHead::to_response(status, None), true);
        }
    }

    /// Resolves when the client gives up before it was answered, so that what is done for it can be abandoned.
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
