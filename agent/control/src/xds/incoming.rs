//! Reads responses from the stream: gRPC's message framing. tonic's own decoder keeps a buffer of the size of the largest
//! message for as long as the stream is open; the first push is a whole mesh and no later one is nearly as large, so this
//! one releases the buffer with each message.

use std::future::poll_fn;
use std::pin::Pin;

use hyper::body::Body as _;
use isthmus_proto::discovery::DeltaDiscoveryResponse;
use prost::Message as _;
use tonic::body::Body;
use tonic::{Code, Status};

/// Limit of one response, which may be a whole mesh.
const LIMIT: usize = 200 * 1024 * 1024;
/// gRPC message prefix: one byte for the compression flag, four for the length.
const HEADER: usize = 5;

/// The responses of one stream.
#[derive(Debug)]
pub(super) struct Incoming {
    body: Body,
    /// The incomplete message.
    buffer: Vec<u8>,
    /// Status of the stream, once headers or trailers carried it.
    ended: Option<Status>,
}

impl Incoming {
    /// Wraps the response to the request that opened the stream.
    ///
    /// # Errors
    /// When the server rejected it.
    pub(super) fn new(response: http::Response<Body>) -> Result<Self, Status> {
        let ended = Status::from_header_map(response.headers());
        if let Some(status) = ended.as_ref().filter(|status| status.code() != Code::Ok) {
            return Err(status.clone());
        }
        if response.status() != http::StatusCode::OK {
            return Err(http_error(response.status()));
        }
        Ok(Self { body: response.into_body(), buffer: Vec::new(), ended })
    }

    /// The next response; `None` when the server closed the stream without an error.
    ///
    /// # Errors
    /// When the stream broke, or a message cannot be decoded.
    pub(super) async fn message(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Some(message));
            }
            if self.ended.is_some() {
                return Ok(None);
            }
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(frame) => self.trailers(frame.into_trailers().unwrap_or_default())?,
                },
                Some(Err(status)) => return Err(status),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended in the middle of a message")),
            }
        }
    }

    /// Decodes a complete message and releases its memory.
    fn take_message(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
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
        let end = HEADER + length;
        if self.buffer.len() < end {
            self.buffer.reserve_exact(end - self.buffer.len());
            return Ok(None);
        }
        let rest = self.buffer.split_off(end);
        let message = std::mem::replace(&mut self.buffer, rest);
        let response = DeltaDiscoveryResponse::decode(&message[HEADER..]);
        response.map(Some).map_err(|error| Status::internal(error.to_string()))
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
    use super::*;

    fn framed(message: &DeltaDiscoveryResponse) -> Vec<u8> {
        let body = message.encode_to_vec();
        [&[0][..], &u32::try_from(body.len()).unwrap().to_be_bytes(), &body].concat()
    }

    fn incoming() -> Incoming {
        Incoming::new(http::Response::new(Body::empty())).unwrap()
    }

    #[test]
    fn a_decoded_message_releases_its_memory() {
        let large =
            DeltaDiscoveryResponse { nonce: "n".repeat(1 << 20), ..DeltaDiscoveryResponse::default() };
        let small = DeltaDiscoveryResponse { nonce: "small".to_owned(), ..DeltaDiscoveryResponse::default() };
        let (bytes, mut incoming, mut got) =
            ([framed(&large), framed(&small)].concat(), incoming(), Vec::new());
        for part in bytes.chunks(10_007) {
            incoming.buffer.extend_from_slice(part);
            while let Some(message) = incoming.take_message().unwrap() {
                got.push(message);
            }
        }
        assert_eq!(got, [large, small]);
        assert!(incoming.buffer.capacity() < 100, "{} bytes are kept", incoming.buffer.capacity());
    }

    #[test]
    fn invalid_framing_is_reported() {
        for (header, want) in [
            ([1, 0, 0, 0, 0], "compression flag 1"),
            ([0, 0xff, 0xff, 0xff, 0xff], "decoded message length too large: 4294967295 bytes"),
        ] {
            let mut incoming = incoming();
            incoming.buffer.extend(header);
            assert!(incoming.take_message().unwrap_err().message().contains(want));
            assert!(incoming.buffer.capacity() < 100);
        }
    }
}
