//! The ZDS codec: one protobuf message per SEQPACKET packet, without a length prefix. Pure; it checks that a request is
//! complete, not that it is allowed now ([`crate::table`] does).

use std::os::fd::OwnedFd;

use isthmus_model::{PodRef, PodUid};
use isthmus_proto::zds;
use prost::Message;

/// The agent's first packet: protocol version 1.
pub const HELLO: [u8; 2] = [0x08, 0x01];

/// istio-cni reads acks into a buffer of this size; a larger packet would be cut off.
const MAX_ACK: usize = 1024;
/// Tags and lengths around the error text in an ack of that size.
const FRAMING: usize = 6;

/// A request of the node role.
#[derive(Debug)]
pub enum Request {
    /// Serve this pod.
    Add {
        /// Which pod.
        pod: PodRef,
        /// The file descriptor that came with the packet: the pod's network namespace.
        netns: OwnedFd,
    },
    /// The pod still exists.
    Keep(PodUid),
    /// The pod has ended or left the mesh.
    Del(PodUid),
    /// The snapshot is complete.
    SnapshotSent,
}

/// A packet that is not a valid request: the node role's mistake, or another version of the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Not a protobuf message of the protocol.
    #[error("a packet of {len} bytes is no ZDS request: {reason}")]
    Undecodable {
        /// Size of the packet in bytes.
        len: usize,
        /// The decoder's error.
        reason: String,
    },
    /// A message without a payload that this version knows.
    #[error("a packet of {0} bytes carries no request that is known")]
    Unknown(usize),
    /// A request does not say which pod.
    #[error("{0} has an empty uid")]
    NoUid(&'static str),
    /// An add does not describe its pod.
    #[error("add of pod {0} has no workload_info")]
    NoInfo(PodUid),
    /// An add must carry exactly one descriptor, the pod's network namespace.
    #[error("add of pod {uid} carries {got} file descriptors instead of 1")]
    Descriptors {
        /// The pod.
        uid: PodUid,
        /// How many came.
        got: usize,
    },
    /// Only an add carries a descriptor.
    #[error("a request without a network namespace carries {0} file descriptors")]
    UnwantedDescriptors(usize),
}

/// Decodes a packet and the file descriptors that came with it.
///
/// # Errors
/// When it is not a valid request.
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
    let pod = PodRef {
        uid,
        namespace: namespace.into(),
        name: name.into(),
        service_account: service_account.into(),
    };
    Ok(Request::Add { pod, netns })
}

fn uid_of(what: &'static str, uid: String) -> Result<PodUid, BadRequest> {
    if uid.is_empty() { Err(BadRequest::NoUid(what)) } else { Ok(uid.into()) }
}

/// Encodes the ack of one request; with an error it is a nack. The error is cut to its first line and to what
/// istio-cni's buffer takes.
#[must_use]
pub fn ack(error: Option<&str>) -> Vec<u8> {
    let line = error.and_then(|error| error.lines().next()).unwrap_or_default();
    let ack = zds::Ack { error: truncate(line, MAX_ACK - 1 - FRAMING).to_owned() };
    zds::WorkloadResponse { payload: Some(zds::workload_response::Payload::Ack(ack)) }.encode_to_vec()
}

/// The longest prefix of at most `max` bytes that ends on a character boundary.
fn truncate(text: &str, max: usize) -> &str {
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
    fn the_four_requests_decode_from_wire_bytes() {
        let add = b"\x0a\x0f\x0a\x01u\x12\x0a\x0a\x01n\x12\x02ns\x1a\x01s";
        match decode(add, vec![fd()]).unwrap() {
            Request::Add { pod, .. } => {
                assert_eq!(pod.uid.as_str(), "u");
                assert_eq!(pod.name.as_str(), "n");
                assert_eq!(pod.namespace.as_str(), "ns");
                assert_eq!(pod.service_account.as_str(), "s");
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
    fn an_invalid_packet_is_rejected_with_its_reason() {
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
    fn an_ack_is_one_line_that_fits_the_receivers_buffer() {
        assert_eq!(ack(None), [0x0a, 0x00]);
        assert_eq!(ack(Some("no")), b"\x0a\x04\x0a\x02no");
        assert_eq!(ack(Some("what\n   0: a backtrace")), b"\x0a\x06\x0a\x04what");
        for text in ["x".repeat(5000), "é".repeat(5000), format!("x{}", "€".repeat(3000))] {
            let packet = ack(Some(&text));
            assert!(packet.len() < MAX_ACK && packet.len() > MAX_ACK - 8, "{}", packet.len());
            let read = zds::WorkloadResponse::decode(&packet[..]).unwrap();
            let Some(zds::workload_response::Payload::Ack(decoded)) = read.payload else { panic!() };
            assert!(text.starts_with(&decoded.error));
        }
    }
}
