//! gRPC framing for the scripted control plane; messages stay bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::{Request as HttpRequest, Response as HttpResponse};
use tonic::codegen::{BoxFuture, Service};
use tonic::{Request, Response, Status, Streaming};

use super::ServerState;

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Longest request that is read. istiod reads 4 MiB by default.
const LARGEST_REQUEST: usize = 64 << 20;
const CA: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Answers one HTTP request.
pub(super) async fn route(
    shared: Arc<ServerState>,
    request: HttpRequest<Incoming>,
) -> Result<HttpResponse<tonic::body::Body>, Infallible> {
    // A reconnect names every resource that the agent has.
    let mut grpc = tonic::server::Grpc::new(Raw).max_decoding_message_size(LARGEST_REQUEST);
    match request.uri().path() {
        ADS => Ok(grpc.streaming(Ads(shared), request).await),
        CA => Ok(grpc.unary(Sign(shared), request).await),
        path => Ok(Status::unimplemented(path.to_owned()).into_http()),
    }
}

struct Ads(Arc<ServerState>);

impl Service<Request<Streaming<Bytes>>> for Ads {
    type Response = Response<Responses>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let (metadata, _, requests) = request.into_parts();
        let (to_test, from_test) = self.0.stream(metadata);
        let responses = Responses { requests, to_test, from_test: UnboundedReceiverStream::new(from_test) };
        Box::pin(std::future::ready(Ok(Response::new(responses))))
    }
}

struct Sign(Arc<ServerState>);

impl Service<Request<Bytes>> for Sign {
    type Response = Response<Bytes>;
    type Error = Status;
    type Future = BoxFuture<Self::Response, Status>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        let (metadata, _, raw) = request.into_parts();
        Box::pin(async move { shared.sign(metadata, raw).await.map(Response::new) })
    }
}

/// What the test pushes. Polling it also moves the client's messages to the test, so that no task is needed for them.
pub(super) struct Responses {
    requests: Streaming<Bytes>,
    to_test: mpsc::UnboundedSender<Bytes>,
    from_test: UnboundedReceiverStream<Result<Bytes, Status>>,
}

impl tokio_stream::Stream for Responses {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Poll::Ready(Some(Ok(message))) = Pin::new(&mut self.requests).poll_next(cx) {
            let _ = self.to_test.send(message);
        }
        Pin::new(&mut self.from_test).poll_next(cx)
    }
}

/// A codec that does nothing.
#[derive(Clone, Copy)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
