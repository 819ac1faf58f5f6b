//! Keeps an ADS stream open: connects, exchanges messages through the session, and reconnects with backoff. It does not
//! know what a resource means.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue, TE};
use isthmus_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain::Watch;
use isthmus_rt::file;
use isthmus_rt::ready::BlockReady;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::GrpcService as _;
use tonic::codec::{Codec as _, EncodeBody};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::incoming::Incoming;
use super::session::{HandledResponse, Push, Session, TooManyRejected};
use super::warnings::Warnings;
use super::{Config, Kind, Limits, Rejection, Rejections, Sink};
use crate::channel::{Dialer, status_text};
use crate::metrics::{Metrics, Reason};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const MIN_BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_secs(15);
/// A stream that lasted so long and delivered ends an outage: the next one is opened without a backoff. A server that ends
/// each stream after its first response is in an outage for its clients.
const STABLE: Duration = Duration::from_secs(30);
/// Replies that may wait for the server to read them, and how long the next response waits for room. Responses that are not
/// acknowledged in time come from a server that does not listen.
const UNREAD: usize = 64;
const UNREAD_WAIT: Duration = Duration::from_secs(30);
/// Rejected resources of one response that the log names.
const LOGGED: usize = 3;
/// When a server that has sent nothing is worth a warning.
const SILENCE: Duration = Duration::from_secs(30);

/// Feeds the mesh's configuration into `sink` until the drain begins. `ready` is released once the first push of every
/// type was applied; rejected resources do not delay it.
pub async fn run(
    config: Config,
    sink: Arc<dyn Sink>,
    ready: BlockReady,
    metrics: Arc<Metrics>,
    drain: Watch,
) {
    let client = Client {
        dialer: Dialer::new(config.server),
        session: Session::new(config.node.to_proto(), Limits { budget: config.budget, ..Limits::default() }),
        budget: config.budget,
        warnings: Warnings::new(),
        rejections: config.rejections,
        sink,
        ready: Some(ready),
        metrics,
        progress: None,
    };
    tokio::select! {
        () = client.run() => {}
        () = drain.graceful() => {}
    }
}

struct Client {
    dialer: Dialer,
    session: Session,
    rejections: Rejections,
    sink: Arc<dyn Sink>,
    ready: Option<BlockReady>,
    metrics: Arc<Metrics>,
    /// What one response may cost, in bytes.
    budget: u64,
    warnings: Warnings,
    /// When the current stream delivered its first response.
    progress: Option<Instant>,
}

/// Why a stream ended, for metric and log.
struct StreamEnd {
    reason: Reason,
    text: String,
}

/// Both directions of an open stream.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Incoming,
}

// === impl Client ===

impl Client {
    async fn run(mut self) {
        let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        let mut last = String::new();
        loop {
            self.progress = None;
            let end = match self.open_stream().await {
                Ok(stream) => self.serve_stream(stream).await,
                Err(end) => end,
            };
            self.metrics.ended(end.reason);
            let stable = self.progress.is_some_and(|since| since.elapsed() >= STABLE);
            if stable {
                backoff.reset();
            }
            let wait = backoff.next_delay();
            // One warning per outage, not per attempt; few where each attempt fails in another way.
            let changed = end.text != last || stable;
            match changed.then(|| self.warnings.next()).flatten() {
                Some(left_out) => tracing::warn!(
                    address = %self.address(), reason = ?end.reason, error = %end.text, retry_in = ?wait, left_out,
                    "xDS stream ended, the last configuration stays in force; reconnecting"
                ),
                None => {
                    tracing::debug!(address = %self.address(), error = %end.text, "xDS reconnect failed");
                }
            }
            last = end.text;
            tokio::time::sleep(wait).await;
        }
    }

    /// Connects and opens a stream. The first requests are queued before the response headers are awaited: a server may
    /// withhold its headers until it has read a request.
    async fn open_stream(&self) -> Result<Stream, StreamEnd> {
        let failed = |text: String| StreamEnd { reason: Reason::ConnectionError, text };
        let (requests, queue) = mpsc::channel(UNREAD);
        let mut request = Request::new(ReceiverStream::new(queue));
        // First, since a connection without a token is useless.
        self.dialer
            .server()
            .authorize(request.metadata_mut())
            .await
            .map_err(|error| failed(error.to_string()))?;
        for first in self.session.initial_requests() {
            // The receiver is in the request above, and has room.
            let _ = requests.try_send(first);
        }
        let mut channel = self.dialer.connect().await.map_err(|error| failed(error.to_string()))?;
        let lost = |error: tonic::transport::Error| StreamEnd::of(&Status::from_error(error.into()));
        poll_fn(|cx| channel.poll_ready(cx)).await.map_err(lost)?;
        let opening = channel.call(stream_request(request));
        let response = self.warn_of_silence(opening).await.map_err(lost)?;
        let responses = Incoming::new(response, self.budget).map_err(|status| StreamEnd::of(&status))?;
        Ok(Stream { requests, responses })
    }

    /// Waits for the server to open the stream, as long as it takes: a server that is starting may hold its clients.
    async fn warn_of_silence<T>(&self, opening: impl Future<Output = T>) -> T {
        let mut opening = std::pin::pin!(opening);
        if let Ok(opened) = tokio::time::timeout(SILENCE, &mut opening).await {
            return opened;
        }
        tracing::warn!(
            address = %self.address(), waiting = ?SILENCE,
            "xDS server is connected and does not open the stream, the last configuration stays in force"
        );
        opening.await
    }

    async fn serve_stream(&mut self, mut stream: Stream) -> StreamEnd {
        tracing::info!(address = %self.address(), "xDS stream opened");
        let mut roots_check = tokio::time::interval(file::POLL);
        roots_check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = stream.responses.message() => message,
                _ = roots_check.tick() => match self.dialer.recheck().await {
                    Ok(()) => continue,
                    Err(error) => {
                        return StreamEnd { reason: Reason::ConnectionError, text: error.to_string() };
                    }
                },
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => {
                    return StreamEnd {
                        reason: Reason::Complete,
                        text: "the server closed the stream".to_owned(),
                    };
                }
                Err(status) => return StreamEnd::of(&status),
            };
            self.progress.get_or_insert_with(Instant::now);
            let reply = match self.apply(response) {
                Ok(reply) => reply,
                Err(refused) => return StreamEnd { reason: Reason::Error, text: refused.to_string() },
            };
            match tokio::time::timeout(UNREAD_WAIT, stream.requests.send(reply)).await {
                Ok(Ok(())) => {}
                // The response side reports why, in the next iteration.
                Ok(Err(_)) => tracing::debug!("xDS request stream is closed"),
                Err(_) => {
                    let text = format!("the server does not read: {UNREAD} acknowledgements wait");
                    return StreamEnd { reason: Reason::Error, text };
                }
            }
        }
    }

    fn address(&self) -> &str {
        &self.dialer.server().address
    }

    /// Applies one response and returns the ACK or NACK.
    fn apply(&mut self, response: DeltaDiscoveryResponse) -> Result<DeltaDiscoveryRequest, TooManyRejected> {
        let url = response.type_url.clone();
        let (count, removed) = (response.resources.len(), response.removed_resources.len());
        let known = Kind::of(&url).map_or("unknown", Kind::type_url);
        self.metrics.message(known, bytes(&response));
        let HandledResponse { push, reply, rejected } = self.session.handle_response(response)?;
        match push {
            Some(Push::Addresses { upserts, removed }) => self.sink.addresses(upserts, removed),
            Some(Push::Policies { upserts, removed, refused }) => {
                self.sink.policies(upserts, removed, refused);
            }
            None => tracing::debug!(url = known, "ignored an xDS response of a type that is not subscribed"),
        }
        tracing::debug!(
            url = known,
            resources = count,
            removed,
            rejected = rejected.len(),
            "xDS response applied"
        );
        self.report(known, &rejected);
        let rejections = self.session.rejections();
        for kind in Kind::ALL {
            let count = rejections.iter().filter(|rejection| rejection.kind == kind).count();
            self.metrics.rejected(kind.type_url(), count);
        }
        self.rejections.set(rejections);
        if self.ready.is_some() && self.session.is_synced() {
            tracing::info!("first xDS configuration applied");
            self.ready = None;
        }
        Ok(reply)
    }

    /// Logs rejected resources: each of a few, and how many more there are.
    fn report(&mut self, url: &str, rejected: &[Rejection]) {
        let (first, more) = rejected.split_at(rejected.len().min(LOGGED));
        for (at, rejection) in first.iter().enumerate() {
            let more = if at + 1 == first.len() { more.len() } else { 0 };
            let (name, error) = (&rejection.name, &rejection.reason);
            match self.warnings.next() {
                Some(left_out) => tracing::warn!(
                    %url, %name, %error, more, left_out,
                    "xDS resource refused, its last accepted version stays in force"
                ),
                None => tracing::debug!(%url, %name, %error, more, "xDS resource refused"),
            }
        }
    }
}

// === impl StreamEnd ===

impl StreamEnd {
    /// Distinguishes a lost connection, as when the server restarts, from an error of the server or the client.
    fn of(status: &Status) -> Self {
        let lost = match status.code() {
            Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
            Code::Unavailable => {
                let text = status.message();
                text.contains("transport is closing") || text.contains("received prior goaway")
            }
            _ => false,
        };
        let reason = if lost { Reason::Reconnect } else { Reason::Error };
        Self { reason, text: status_text(status) }
    }
}

/// The HTTP request that opens the stream; its body carries the xDS requests.
fn stream_request(
    request: Request<ReceiverStream<DeltaDiscoveryRequest>>,
) -> http::Request<tonic::body::Body> {
    let (metadata, _, requests) = request.into_parts();
    let encoder = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default().encoder();
    let body = EncodeBody::new_client(encoder, requests.map(Ok), None, None);
    let mut opening = http::Request::new(tonic::body::Body::new(body));
    *opening.method_mut() = http::Method::POST;
    *opening.uri_mut() = http::Uri::from_static(METHOD);
    *opening.headers_mut() = metadata.into_headers();
    opening.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    opening.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    opening
}

fn bytes(response: &DeltaDiscoveryResponse) -> u64 {
    let bodies = response.resources.iter().filter_map(|resource| resource.resource.as_ref());
    bodies.map(|any| any.value.len() as u64).sum()
}
