//! ZDS messages as bytes: one protobuf message per packet, no length before it. Pure.

use std::os::fd::OwnedFd;

use isthmus_model::PodUid;
use isthmus_proto::zds;
use prost::Message;

use crate::runtime::PodInfo;

/// The agent's first packet: protocol version 1.
pub const HELLO: [u8; 2] = [0x08, 0x01];

/// The node role's receive buffer; an answer must be smaller.
const MAX_ANSWER: usize = 1024;
/// Tags and lengths around the text of an answer of that size.
const FRAMING: usize = 6;

/// What the node role asks for.
#[derive(Debug)]
pub enum Request {
    /// Serve this pod.
    Add {
        /// The pod's UID.
        uid: PodUid,
        /// Who it is.
        info: PodInfo,
        /// The file that came with the packet: its network namespace.
        netns: OwnedFd,
    },
    /// The pod is still there.
    Keep(PodUid),
    /// The pod is gone.
    Del(PodUid),
    /// All pods have been named.
    SnapshotSent,
}

/// A packet that is no request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Not the protocol's.
    #[error("a packet of {len} bytes is no ZDS request: {reason}")]
    Undecodable {
        /// Its size.
        len: usize,
        /// The decoder's words.
        reason: String,
    },
    /// Decoded, but to nothing this version knows.
    #[error("a packet of {0} bytes carries no request that is known")]
    Unknown(usize),
    /// A pod has no UID.
    #[error("{0} has an empty uid")]
    NoUid(&'static str),
    /// A pod is not described.
    #[error("add of pod {0} has no workload_info")]
    NoInfo(PodUid),
    /// A pod's namespace is missing, or there are several.
    #[error("add of pod {uid} carries {got} file descriptors instead of 1")]
    Descriptors {
        /// The pod.
        uid: PodUid,
        /// How many came.
        got: usize,
    },
    /// A request that carries no file brought one.
    #[error("a request without a network namespace carries {0} file descriptors")]
    UnwantedDescriptors(usize),
}

/// Reads a packet and the files that came with it.
///
/// # Errors
/// When it is no request.
pub fn decode(packet: &[u8], fds: Vec<OwnedFd>) -> Result<Request, BadRequest> {
    use zds::workload_request::Payload;
    let message = zds::WorkloadRequest::decode(packet)
        .map_err(|error| BadRequest::Undecodable { len: packet.len(), reason: error.to_string() })?;
    let payload = message.payload.ok_or(BadRequest::Unknown(packet.len()))?;
    if let Payload::Add(add) = payload {
        return decode_add(add, fds);
    }
    if !fds.is_empty() {
        return Err(BadRequest::UnwantedDescriptors(fds.len()));
    }
    match payload {
        Payload::Keep(zds::KeepWorkload { uid }) => Ok(Request::Keep(uid_of("keep", uid)?)),
        Payload::Del(zds::DelWorkload { uid }) => Ok(Request::Del(uid_of("del", uid)?)),
        Payload::SnapshotSent(zds::SnapshotSent {}) => Ok(Request::SnapshotSent),
        Payload::Add(_) => Err(BadRequest::Unknown(packet.len())),
    }
}

fn decode_add(add: zds::AddWorkload, mut fds: Vec<OwnedFd>) -> Result<Request, BadRequest> {
    let uid = uid_of("add", add.uid)?;
    let Some(zds::WorkloadInfo { name, namespace, service_account }) = add.workload_info else {
        return Err(BadRequest::NoInfo(uid));
    };
    let got = fds.len();
    let netns = fds.pop().filter(|_| got == 1);
    let Some(netns) = netns else { return Err(BadRequest::Descriptors { uid, got }) };
    let info =
        PodInfo { name: name.into(), namespace: namespace.into(), service_account: service_account.into() };
    Ok(Request::Add { uid, info, netns })
}

fn uid_of(what: &'static str, uid: String) -> Result<PodUid, BadRequest> {
    if uid.is_empty() { Err(BadRequest::NoUid(what)) } else { Ok(uid.into()) }
}

/// The answer to one request: nothing, or what went wrong, on one line and short enough for the node role's buffer.
#[must_use]
pub fn answer(error: Option<&str>) -> Vec<u8> {
    let line = error.and_then(|error| error.lines().next()).unwrap_or_default();
    let ack = zds::Ack { error: shorten(line, MAX_ANSWER - 1 - FRAMING).to_owned() };
    zds::WorkloadResponse { payload: Some(zds::workload_response::Payload::Ack(ack)) }.encode_to_vec()
}

/// The longest beginning of at most `max` bytes that ends between two characters.
fn shorten(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn fd() -> OwnedFd {
        File::open("/proc/self/ns/net").unwrap().into()
    }

    #[test]
    fn the_four_requests_are_read_from_the_wires_bytes() {
        let add = b"\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x02ns\x1a\x01s";
        match decode(add, vec![fd()]).unwrap() {
            Request::Add { uid, info, .. } => {
                assert_eq!(uid.as_str(), "u");
                assert_eq!(info.name.as_str(), "n");
                assert_eq!(info.namespace.as_str(), "ns");
                assert_eq!(info.service_account.as_str(), "s");
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(decode(b"\x2a\x03\x0a\x01u", vec![]).unwrap(), Request::Keep(uid) if uid.as_str() == "u")
        );
        // The uid of del is field 2.
        assert!(
            matches!(decode(b"\x12\x03\x12\x01u", vec![]).unwrap(), Request::Del(uid) if uid.as_str() == "u")
        );
        assert!(matches!(decode(b"\x1a\x00", vec![]).unwrap(), Request::SnapshotSent));
    }

    #[test]
    fn what_is_no_request_is_refused_by_name() {
        let add = b"\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x02ns\x1a\x01s";
        let cases: [(&[u8], usize, &str); 8] = [
            (b"\xff\xff", 0, "2 bytes is no ZDS request"),
            (b"", 0, "no request that is known"),
            (b"\x7a\x00", 0, "no request that is known"),
            (b"\x0a\x03\x0a\x01u", 1, "add of pod u has no workload_info"),
            (add, 0, "add of pod u carries 0 file descriptors"),
            (add, 2, "add of pod u carries 2 file descriptors"),
            (b"\x12\x03\x0a\x01u", 0, "del has an empty uid"),
            (b"\x1a\x00", 1, "carries 1 file descriptors"),
        ];
        for (packet, fds, want) in cases {
            let error = decode(packet, (0..fds).map(|_| fd()).collect()).unwrap_err().to_string();
            assert!(error.contains(want), "{error:?} should contain {want:?}");
        }
    }

    #[test]
    fn an_answer_is_one_line_that_fits_the_buffer() {
        assert_eq!(answer(None), [0x0a, 0x00]);
        assert_eq!(answer(Some("no")), b"\x0a\x04\x0a\x02no");
        assert_eq!(answer(Some("what\n   0: a backtrace")), b"\x0a\x06\x0a\x04what");
        for text in ["x".repeat(5000), "é".repeat(5000), format!("x{}", "€".repeat(3000))] {
            let packet = answer(Some(&text));
            assert!(packet.len() < MAX_ANSWER && packet.len() > MAX_ANSWER - 8, "{}", packet.len());
            let read = zds::WorkloadResponse::decode(&packet[..]).unwrap();
            let Some(zds::workload_response::Payload::Ack(ack)) = read.payload else { panic!() };
            assert!(text.starts_with(&ack.error));
        }
    }
}
