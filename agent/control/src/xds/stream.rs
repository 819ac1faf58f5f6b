//! The loop that keeps an ADS stream open: connect, talk through the session, wait, again.

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
use tokio::time::MissedTickBehavior;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::GrpcService as _;
use tonic::codec::{Codec as _, EncodeBody};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

use super::incoming::Incoming;
use super::session::{Push, Reaction, Session};
use super::{Config, Rejections, Sink};
use crate::channel::{Dialer, status_text};
use crate::metrics::{Metrics, Reason};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Keeps the mesh's configuration flowing into `sink` until the drain begins. `ready` is released once the first push of
/// both types was applied; a refused resource does not hold it.
pub async fn run(
    config: Config,
    sink: Arc<dyn Sink>,
    ready: BlockReady,
    metrics: Arc<Metrics>,
    drain: Watch,
) {
    let client = Client {
        dialer: Dialer::new(config.server),
        session: Session::new(config.node.to_proto()),
        rejections: config.rejections,
        sink,
        ready: Some(ready),
        metrics,
        progress: false,
    };
    tokio::select! {
        () = client.forever() => {}
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
    /// Whether the present stream brought anything.
    progress: bool,
}

/// How a stream ended.
struct End {
    reason: Reason,
    text: String,
}

/// Both directions of an open stream.
struct Stream {
    requests: mpsc::UnboundedSender<DeltaDiscoveryRequest>,
    responses: Incoming,
}

// === impl Client ===

impl Client {
    async fn forever(mut self) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut last = String::new();
        loop {
            self.progress = false;
            let end = match self.open().await {
                Ok(stream) => self.talk(stream).await,
                Err(end) => end,
            };
            self.metrics.ended(end.reason);
            if self.progress {
                backoff.reset();
            }
            let wait = backoff.next_delay();
            // An outage is one line, not one per attempt.
            if end.text != last || self.progress {
                tracing::warn!(
                    address = %self.address(), reason = ?end.reason, error = %end.text,
                    "xDS stream ended, what is known stays in force"
                );
            } else {
                tracing::debug!(address = %self.address(), error = %end.text, "xDS stream failed again");
            }
            last = end.text;
            tokio::time::sleep(wait).await;
        }
    }

    /// Connects and opens a stream. The first requests are queued before the server is asked for its headers, which it
    /// may hold back until it has read them.
    async fn open(&self) -> Result<Stream, End> {
        let failed = |text: String| End { reason: Reason::ConnectionError, text };
        let (requests, queue) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(queue));
        // Before the connection: without a token there is no point in one.
        self.dialer
            .server()
            .authorize(request.metadata_mut())
            .await
            .map_err(|error| failed(error.to_string()))?;
        for first in self.session.opened() {
            // The receiver is in the request above.
            let _ = requests.send(first);
        }
        let mut channel = self.dialer.connect().await.map_err(failed)?;
        let lost = |error: tonic::transport::Error| End::of(&Status::from_error(error.into()));
        poll_fn(|cx| channel.poll_ready(cx)).await.map_err(lost)?;
        let response = channel.call(opening(request)).await.map_err(lost)?;
        let responses = Incoming::new(response).map_err(|status| End::of(&status))?;
        Ok(Stream { requests, responses })
    }

    async fn talk(&mut self, mut stream: Stream) -> End {
        tracing::info!(address = %self.address(), "xDS stream opened");
        let mut looks = tokio::time::interval(file::POLL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                message = stream.responses.message() => message,
                _ = looks.tick() => match self.dialer.recheck().await {
                    Ok(()) => continue,
                    Err(text) => return End { reason: Reason::ConnectionError, text },
                },
            };
            let response = match message {
                Ok(Some(response)) => response,
                Ok(None) => {
                    return End { reason: Reason::Complete, text: "the server ended the stream".to_owned() };
                }
                Err(status) => return End::of(&status),
            };
            self.progress = true;
            let reply = self.apply(response);
            if stream.requests.send(reply).is_err() {
                // The response side says why, on the next turn.
                tracing::debug!("xDS request stream is closed");
            }
        }
    }

    fn address(&self) -> &str {
        &self.dialer.server().address
    }

    /// Applies one response and returns the answer to it.
    fn apply(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let url = response.type_url.clone();
        let (count, removed) = (response.resources.len(), response.removed_resources.len());
        self.metrics.message(&url, bytes(&response));
        let Reaction { push, reply, rejected } = self.session.response(response);
        match push {
            Some(Push::Addresses { upserts, removed }) => self.sink.addresses(upserts, removed),
            Some(Push::Policies { upserts, removed, refused }) => {
                self.sink.policies(upserts, removed, refused);
            }
            None => tracing::debug!(%url, "xDS response of a type that was not asked for is ignored"),
        }
        tracing::debug!(%url, resources = count, removed, rejected = rejected.len(), "xDS response applied");
        for rejection in &rejected {
            tracing::warn!(%url, name = %rejection.name, error = %rejection.reason, "xDS resource refused");
        }
        let standing = self.session.rejections();
        for kind in super::Kind::ALL {
            let count = standing.iter().filter(|rejection| rejection.kind == kind).count();
            self.metrics.rejected(kind.type_url(), count);
        }
        self.rejections.set(standing);
        if self.ready.is_some() && self.session.is_synced() {
            tracing::info!("xDS: the first configuration is in force");
            self.ready = None;
        }
        reply
    }
}

// === impl End ===

impl End {
    /// A failure of the network is told from one of the server or of ours.
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

/// The request that opens a stream and carries all others.
fn opening(
    request: Request<UnboundedReceiverStream<DeltaDiscoveryRequest>>,
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
