//! Reads responses from the stream: gRPC's message framing, and the fields of a response one by one as they arrive. tonic's
//! own decoder holds a whole message and then its copy, for as long as the stream is open; the first push is a whole mesh, and
//! no later one is nearly as large. Here a field is decoded as soon as it is complete, and a response that exceeds the
//! budget is refused where it does, whatever length its prefix claims. What a resource means is the session's.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use hyper::body::Body as _;
use isthmus_proto::discovery::DeltaDiscoveryResponse;
use prost::Message as _;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::body::Body;
use tonic::{Code, Status};

/// Limit of one response, which may be a whole mesh.
const LIMIT: usize = 200 * 1024 * 1024;
/// gRPC message prefix: one byte for the compression flag, four for the length.
const HEADER: usize = 5;
/// What a field costs besides its bytes: a decoded resource or name is at least so large.
const FIELD_COST: u64 = 128;
/// Longest pause in the middle of a message. A server that stalls there has lost its state.
const STALL: Duration = Duration::from_secs(60);
/// A buffer that is larger than this is released with the message that needed it.
const KEPT: usize = 64 * 1024;

/// The responses of one stream.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    /// What has arrived and is not decoded: the beginning of a prefix or of a field.
    buffer: Vec<u8>,
    /// The message whose prefix was read.
    partial: Option<Partial>,
    /// What one response may cost, in bytes.
    budget: u64,
    /// Status of the stream, once headers or trailers carried it.
    ended: Option<Status>,
}

/// A message of which only a part has arrived.
#[derive(Debug)]
struct Partial {
    response: DeltaDiscoveryResponse,
    /// Bytes that are not decoded yet.
    left: usize,
    cost: u64,
}

impl Incoming {
    /// Wraps the response to the request that opened the stream.
    ///
    /// # Errors
    /// When the server rejected it.
    pub(super) fn new(response: http::Response<Body>, budget: u64) -> Result<Self, Status> {
        let ended = Status::from_header_map(response.headers());
        if let Some(status) = ended.as_ref().filter(|status| status.code() != Code::Ok) {
            return Err(status.clone());
        }
        if response.status() != http::StatusCode::OK {
            return Err(http_error(response.status()));
        }
        Ok(Self { body: response.into_body(), buffer: Vec::new(), partial: None, budget, ended })
    }

    /// The next response; `None` when the server closed the stream without an error. Cancel safe.
    ///
    /// # Errors
    /// When the stream broke or stalls in a message, or a message cannot be decoded or is too large.
    pub(super) async fn message(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            if self.ended.is_some() {
                return Ok(None);
            }
            let begun = self.partial.is_some() || !self.buffer.is_empty();
            let next = poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx));
            let frame = match begun {
                true => tokio::time::timeout(STALL, next).await.map_err(|_| stalled())?,
                false => next.await,
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.trailers(frame.into_trailers().unwrap_or_default())?,
                },
                Some(Err(status)) => return Err(status),
                None if begun => return Err(Status::internal("the stream ended in the middle of a message")),
                None => return Ok(None),
            }
        }
    }

    /// Decodes what is complete; returns a message that is.
    fn take_message(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        if self.partial.is_none() {
            let Some(left) = self.take_prefix()? else { return Ok(None) };
            self.partial = Some(Partial { response: DeltaDiscoveryResponse::default(), left, cost: 0 });
        }
        let Some(partial) = &mut self.partial else { return Ok(None) };
        let decoded = partial.decode(&self.buffer, self.budget)?;
        self.buffer.drain(..decoded);
        if partial.left > 0 {
            return Ok(None);
        }
        if self.buffer.capacity() > KEPT {
            self.buffer = std::mem::take(&mut self.buffer).into_boxed_slice().into_vec();
        }
        Ok(self.partial.take().map(|partial| partial.response))
    }

    /// The length of the next message, once its prefix has arrived.
    fn take_prefix(&mut self) -> Result<Option<usize>, Status> {
        let Some((&[compressed, a, b, c, d], _)) = self.buffer.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        if compressed != 0 {
            return Err(Status::internal(format!(
                "message with compression flag {compressed}, although compression was not negotiated"
            )));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > LIMIT {
            let text =
                format!("decoded message length too large: {length} bytes, the limit is {LIMIT} bytes");
            return Err(Status::out_of_range(text));
        }
        self.buffer.drain(..HEADER);
        Ok(Some(length))
    }

    fn trailers(&mut self, trailers: http::HeaderMap) -> Result<(), Status> {
        let status = Status::from_header_map(&trailers).unwrap_or_else(|| Status::unknown("no status"));
        if status.code() != Code::Ok {
            return Err(status);
        }
        self.ended = Some(status);
        Ok(())
    }
}

impl Partial {
    /// Decodes the complete fields at the beginning of `bytes`, and returns how many bytes they are.
    fn decode(&mut self, bytes: &[u8], budget: u64) -> Result<usize, Status> {
        let bytes = &bytes[..bytes.len().min(self.left)];
        let (mut complete, mut fields) = (0, 0);
        while let Some(length) = field(&bytes[complete..], self.left - complete)? {
            if length > bytes.len() - complete {
                // Refused before it has arrived.
                over(budget, self.cost + length as u64)?;
                break;
            }
            complete += length;
            fields += 1;
        }
        self.cost += complete as u64 + fields * FIELD_COST;
        over(budget, self.cost)?;
        self.response.merge(&bytes[..complete]).map_err(|error| Status::internal(error.to_string()))?;
        self.left -= complete;
        Ok(complete)
    }
}

/// The length of the field that `bytes` begin with, its key included; `None` when they do not say yet. `left` is what the
/// message still has.
fn field(bytes: &[u8], left: usize) -> Result<Option<usize>, Status> {
    /// The longest key and length.
    const LONGEST: usize = 20;
    let mut rest = bytes;
    let mut length = || {
        let (_, kind) = decode_key(&mut rest)?;
        Ok::<_, prost::DecodeError>(match kind {
            WireType::Varint => decode_varint(&mut rest).map(|_| 0)?,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => decode_varint(&mut rest)?,
            WireType::ThirtyTwoBit => 4,
            // No field of a response is a group: what follows cannot be skipped without its end.
            WireType::StartGroup | WireType::EndGroup => u64::MAX,
        })
    };
    let value = match length() {
        Ok(value) => value,
        // An incomplete key or length; a complete one would decode, or be invalid for good.
        Err(_) if bytes.len() < LONGEST.min(left) || bytes.is_empty() => return Ok(None),
        Err(error) => return Err(Status::internal(error.to_string())),
    };
    let length = usize::try_from(value).ok().and_then(|value| value.checked_add(bytes.len() - rest.len()));
    match length.filter(|length| *length <= left) {
        Some(length) => Ok(Some(length)),
        None => Err(Status::internal("failed to decode a response: a field exceeds its message")),
    }
}

fn over(budget: u64, cost: u64) -> Result<(), Status> {
    if cost <= budget {
        return Ok(());
    }
    Err(Status::resource_exhausted(format!(
        "the control plane sent a response that exceeds the budget of {budget} bytes: see ISTHMUS_CONFIG_BUDGET"
    )))
}

fn stalled() -> Status {
    Status::deadline_exceeded(format!("the server stalled for {STALL:?} in the middle of a message"))
}

/// Maps an HTTP status without a gRPC status, which a proxy in front of the server sent, as gRPC specifies.
fn http_error(status: http::StatusCode) -> Status {
    use http::StatusCode as Http;
    let code = match status {
        Http::UNAUTHORIZED => Code::Unauthenticated,
        Http::FORBIDDEN => Code::PermissionDenied,
        Http::NOT_FOUND => Code::Unimplemented,
        Http::TOO_MANY_REQUESTS | Http::BAD_GATEWAY | Http::SERVICE_UNAVAILABLE | Http::GATEWAY_TIMEOUT => {
            Code::Unavailable
        }
        _ => Code::Unknown,
    };
    Status::new(code, format!("HTTP status {status} instead of a stream"))
}

#[cfg(test)]
mod tests {
    use isthmus_kit::istiod::{raw_resource, response};

    use super::*;

    const BUDGET: u64 = 16 << 20;

    fn framed(message: &DeltaDiscoveryResponse) -> Vec<u8> {
        let body = message.encode_to_vec();
        [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), &body].concat()
    }

    fn incoming(budget: u64) -> Incoming {
        Incoming::new(http::Response::new(Body::empty()), budget).unwrap()
    }

    /// Feeds bytes in pieces, and returns the messages in them.
    fn read(
        incoming: &mut Incoming,
        bytes: &[u8],
        piece: usize,
    ) -> Result<Vec<DeltaDiscoveryResponse>, Status> {
        let mut got = Vec::new();
        for part in bytes.chunks(piece) {
            incoming.buffer.extend_from_slice(part);
            while let Some(message) = incoming.take_message()? {
                got.push(message);
            }
        }
        Ok(got)
    }

    #[test]
    fn a_decoded_message_releases_its_memory() {
        let large =
            DeltaDiscoveryResponse { nonce: "n".repeat(1 << 20), ..DeltaDiscoveryResponse::default() };
        let small = DeltaDiscoveryResponse { nonce: "small".to_owned(), ..DeltaDiscoveryResponse::default() };
        let (bytes, mut incoming) = ([framed(&large), framed(&small)].concat(), incoming(BUDGET));
        let got = read(&mut incoming, &bytes, 10_007).unwrap();
        assert_eq!(got, [large, small]);
        assert!(incoming.buffer.capacity() <= KEPT, "{} bytes are kept", incoming.buffer.capacity());
    }

    #[test]
    fn a_message_is_the_same_in_whatever_pieces_it_arrives() {
        let resource = |at: usize| raw_resource("type", &format!("r{at}"), "1", vec![7; at * 31]);
        let messages = [
            response("type", "nonce", (0..20).map(resource).collect(), &["gone", ""]),
            DeltaDiscoveryResponse::default(),
            response("type", "2", vec![resource(0)], &[]),
        ];
        let bytes = messages.iter().map(framed).collect::<Vec<_>>().concat();
        for piece in [1, 2, 3, 5, 7, 64, 1000, bytes.len()] {
            assert_eq!(read(&mut incoming(BUDGET), &bytes, piece).unwrap(), messages, "pieces of {piece}");
        }
    }

    #[test]
    fn a_response_over_the_budget_is_refused_before_it_has_arrived() {
        let names: Vec<String> = (0..100_000).map(|at| format!("name-{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let removals = framed(&response("type", "n", Vec::new(), &names));
        assert!(read(&mut incoming(BUDGET), &removals, 10_000).unwrap().len() == 1);
        let refused = read(&mut incoming(1 << 20), &removals, 10_000).unwrap_err();
        assert!(refused.message().contains("ISTHMUS_CONFIG_BUDGET"), "{refused}");
        // The length of a field is enough.
        let large =
            framed(&response("type", "n", vec![raw_resource("type", "r", "1", vec![0; 2 << 20])], &[]));
        let mut incoming = incoming(1 << 20);
        let refused = read(&mut incoming, &large[..100], 100).unwrap_err();
        assert!(refused.message().contains("ISTHMUS_CONFIG_BUDGET"), "{refused}");
    }

    #[test]
    fn invalid_framing_is_reported() {
        for (bytes, want) in [
            (&[1, 0, 0, 0, 0][..], "compression flag 1"),
            (&[0, 0xff, 0xff, 0xff, 0xff], "decoded message length too large: 4294967295 bytes"),
            // A field that is longer than its message, a group, a key without an end.
            (&[0, 0, 0, 0, 3, 0x12, 0x70, 0], "exceeds its message"),
            (&[0, 0, 0, 0, 2, 0x0b, 0x0c], "exceeds its message"),
            (&[0, 0, 0, 0, 2, 0xff, 0xff], "decode"),
        ] {
            let mut incoming = incoming(BUDGET);
            let refused = read(&mut incoming, bytes, bytes.len()).unwrap_err();
            assert!(refused.message().contains(want), "{refused}");
            assert!(incoming.buffer.capacity() < 100);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stalls_ends_the_stream_and_a_pause_between_messages_does_not() {
        let mut incoming = incoming(BUDGET);
        incoming.buffer.extend_from_slice(&[0, 0, 0]);
        incoming.body = Body::new(Never);
        let stalled = incoming.message().await.unwrap_err();
        assert!(stalled.message().contains("stalled"), "{stalled}");
        incoming.buffer.clear();
        let idle = tokio::time::timeout(STALL * 10, incoming.message()).await;
        assert!(idle.is_err());
    }

    /// A body of which nothing arrives.
    struct Never;

    impl hyper::body::Body for Never {
        type Data = hyper::body::Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<hyper::body::Bytes>, Status>>> {
            std::task::Poll::Pending
        }
    }
}
