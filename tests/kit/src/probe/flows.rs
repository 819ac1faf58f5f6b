//! The byte streams of TCP connections, put together from captured frames.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::{Segment, segment};

/// Longest TLS record: 2^14 bytes and what encryption may add (RFC 8446 §5.2).
const LONGEST_RECORD: usize = (1 << 14) + 256;

/// One direction of one TCP connection.
#[derive(Debug, Clone)]
pub struct Flow {
    /// The sender.
    pub from: SocketAddr,
    /// The receiver.
    pub to: SocketAddr,
    /// What was sent, in order, as far as no segment is missing.
    pub bytes: Vec<u8>,
    /// Whether it was seen from its first byte and no segment is missing.
    pub whole: bool,
}

impl Flow {
    /// Whether the stream is TLS records, one after the other, from its first byte to its last; the last may be cut off.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        let mut rest = self.bytes.as_slice();
        while let Some((head, body)) = rest.split_first_chunk::<5>() {
            let [kind, 3, minor, high, low] = *head else { return false };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if !matches!(kind, 20..=23) || minor > 4 || length > LONGEST_RECORD {
                return false;
            }
            rest = body.get(length..).unwrap_or_default();
        }
        matches!(rest, [] | [20..=23] | [20..=23, 3, ..])
    }
}

/// What is known of a flow until all frames are read.
#[derive(Default)]
struct Parts {
    /// Sequence number of the first byte, if the flow's begin was seen.
    begin: Option<u32>,
    /// Payload by sequence number, in the order of capture.
    segments: Vec<(u32, Vec<u8>)>,
}

/// All flows with a payload. A pair of addresses that is used for a second connection begins another flow.
#[must_use]
pub fn flows(frames: &[Vec<u8>]) -> Vec<Flow> {
    let mut open: HashMap<(SocketAddr, SocketAddr), Parts> = HashMap::new();
    let mut done = Vec::new();
    for tcp in frames.iter().filter_map(|frame| segment(frame)) {
        let Segment { from, to, sequence, .. } = tcp;
        let parts = open.entry((from, to)).or_default();
        if tcp.first && parts.begin != Some(sequence.wrapping_add(1)) {
            let begun = Parts { begin: Some(sequence.wrapping_add(1)), ..Parts::default() };
            done.push((from, to, std::mem::replace(parts, begun)));
        }
        if !tcp.payload.is_empty() {
            parts.segments.push((sequence, tcp.payload.to_vec()));
        }
    }
    done.extend(open.into_iter().map(|((from, to), parts)| (from, to, parts)));
    done.retain(|(.., parts)| !parts.segments.is_empty());
    done.into_iter().map(|(from, to, parts)| parts.join(from, to)).collect()
}

impl Parts {
    fn join(self, from: SocketAddr, to: SocketAddr) -> Flow {
        let first = self.segments.first().map(|(sequence, _)| *sequence);
        let begin = self.begin.or(first).unwrap_or_default();
        // Sent again means captured again.
        let mut by_offset: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for (sequence, payload) in self.segments {
            let known = by_offset.entry(sequence.wrapping_sub(begin)).or_default();
            if payload.len() > known.len() {
                *known = payload;
            }
        }
        let (mut bytes, mut whole) = (Vec::new(), self.begin.is_some());
        for (offset, payload) in by_offset {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            match bytes.len().checked_sub(offset) {
                Some(known) => bytes.extend(payload.get(known..).unwrap_or_default()),
                None => {
                    whole = false;
                    break;
                }
            }
        }
        Flow { from, to, bytes, whole }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::frame_at;
    use super::*;

    const SYN: u8 = 0x02;
    const DATA: u8 = 0x18;

    #[test]
    fn segments_are_put_in_order_and_counted_once() {
        let frames = [
            frame_at(u32::MAX - 1, 1000, 80, SYN, b""),
            frame_at(3, 1000, 80, DATA, b"ef"),
            frame_at(u32::MAX, 1000, 80, DATA, b"abcd"),
            frame_at(u32::MAX, 1000, 80, DATA, b"ab"),
            frame_at(1, 1000, 80, DATA, b"cde"),
        ];
        let [flow] = &flows(&frames)[..] else { panic!("one flow") };
        assert_eq!((flow.bytes.as_slice(), flow.whole), (&b"abcdef"[..], true));
        assert_eq!((flow.from.port(), flow.to.port()), (1000, 80));
        let [late] = &flows(&frames[1..2])[..] else { panic!("one flow") };
        assert!(!late.whole);
        let [gap] = &flows(&frames[..2])[..] else { panic!("one flow") };
        assert_eq!((gap.bytes.len(), gap.whole), (0, false));
    }

    #[test]
    fn a_second_connection_is_another_flow() {
        let frames = [
            frame_at(9, 1000, 80, SYN, b""),
            frame_at(10, 1000, 80, DATA, b"one"),
            frame_at(99, 1000, 80, SYN, b""),
            frame_at(100, 1000, 80, DATA, b"two"),
        ];
        let flows = flows(&frames);
        assert_eq!(flows.iter().map(|flow| flow.bytes.as_slice()).collect::<Vec<_>>(), [b"one", b"two"]);
        assert!(flows.iter().all(|flow| flow.whole));
    }

    #[test]
    fn only_records_from_end_to_end_are_tls() {
        let is = |bytes: &[u8]| {
            let address = "10.0.0.1:1".parse().unwrap();
            Flow { from: address, to: address, bytes: bytes.to_vec(), whole: true }.is_tls()
        };
        let hello = [22, 3, 1, 0, 1, 9];
        assert!(is(&hello));
        assert!(is(&[hello, [23, 3, 3, 0, 1, 0]].concat()));
        assert!(is(&[&hello[..], &[23, 3, 3]].concat()), "cut off");
        assert!(is(&[&hello[..], &[23, 3, 3, 0, 9, 0]].concat()), "cut off");
        assert!(!is(&[&hello[..], b"Hello"].concat()));
        assert!(!is(&[&hello[..], b"H"].concat()));
        assert!(!is(b"GET / HTTP/1.1"));
        assert!(!is(&[23, 3, 3, 0xff, 0xff, 0]));
    }
}
