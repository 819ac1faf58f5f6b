//! Observation from outside: frames on a wire, and answers of an HTTP endpoint.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::Sockets;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

mod flows;

pub use flows::{Flow, flows};

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body, unchunked.
    pub body: String,
}

/// `GET` over a new connection from inside a namespace.
///
/// # Errors
/// When the connection breaks, takes more than 10 s, or the answer is not HTTP.
pub async fn get(netns: &Netns, address: &str, path: &str) -> anyhow::Result<Answer> {
    let sockets = Sockets::in_netns(std::sync::Arc::new(netns.clone()));
    let exchange = async {
        let mut stream = sockets.connect(address.parse()?, None, Duration::from_secs(10)).await?;
        let head = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        anyhow::Ok(Answer { status, body: body.to_owned() })
    };
    tokio::time::timeout(Duration::from_secs(10), exchange).await.context("no answer in time")?
}

/// A TCP segment in an Ethernet frame.
struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    /// The first of its direction.
    first: bool,
    /// The first of the connection.
    syn: bool,
    payload: &'a [u8],
}

/// Reads IPv4 and IPv6 without extension headers; `None` for everything else.
fn segment(frame: &[u8]) -> Option<Segment<'_>> {
    let packet = frame.get(14..)?;
    let (from, to, tcp): (IpAddr, IpAddr, _) = match packet.first()? >> 4 {
        4 if packet.get(9)? == &6 => {
            // The total length is 0 in frames that segmentation offload will still split.
            let total = match u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]) {
                0 => packet.len(),
                total => usize::from(total).clamp(20, packet.len()),
            };
            let address =
                |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            let tcp = packet.get(usize::from(packet[0] & 0x0f) * 4..total)?;
            (address(12)?.into(), address(16)?.into(), tcp)
        }
        6 if packet.get(6)? == &6 => {
            let address =
                |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            (address(8)?.into(), address(24)?.into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let flags = *tcp.get(13)?;
    Some(Segment {
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        first: flags & 0x02 != 0,
        syn: flags & 0x12 == 0x02,
        payload: tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?,
    })
}

/// Whether any frame contains the bytes.
#[must_use]
pub fn contains(frames: &[Vec<u8>], bytes: &[u8]) -> bool {
    frames.iter().any(|frame| frame.windows(bytes.len()).any(|window| window == bytes))
}

/// The number of SYN packets to a port.
#[must_use]
pub fn syns(frames: &[Vec<u8>], port: u16) -> usize {
    frames.iter().filter_map(|frame| segment(frame)).filter(|tcp| tcp.syn && tcp.to.port() == port).count()
}

/// The number of SYN packets from an address to a port.
#[must_use]
pub fn syns_from(frames: &[Vec<u8>], from: IpAddr, port: u16) -> usize {
    let of = |tcp: &Segment<'_>| tcp.syn && tcp.from.ip() == from && tcp.to.port() == port;
    frames.iter().filter_map(|frame| segment(frame)).filter(of).count()
}

/// Payload bytes to and from a port, provided that the first one of each direction begins a TLS record (type 20 to 23,
/// version 3.x); 0 otherwise.
#[must_use]
pub fn tls_bytes(frames: &[Vec<u8>], port: u16) -> usize {
    let tcp: Vec<_> =
        frames.iter().filter_map(|frame| segment(frame)).filter(|tcp| !tcp.payload.is_empty()).collect();
    let to: Vec<_> = tcp.iter().filter(|tcp| tcp.to.port() == port).collect();
    let from: Vec<_> = tcp.iter().filter(|tcp| tcp.from.port() == port).collect();
    let record = |payload: &[u8]| matches!(payload, [20..=23, 3, ..]);
    let begins = |side: &[&Segment<'_>]| side.first().is_some_and(|first| record(first.payload));
    if !begins(&to) || !begins(&from) {
        return 0;
    }
    to.iter().chain(&from).map(|tcp| tcp.payload.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(from: u16, to: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        frame_at(0, from, to, flags, payload)
    }

    pub(super) fn frame_at(sequence: u32, from: u16, to: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 14];
        let total = u16::try_from(40 + payload.len()).unwrap();
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(from.to_be_bytes());
        frame.extend(to.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0; 4]);
        frame.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn segments_are_classified_by_flags_ports_and_payload() {
        let frames = [
            frame(1000, 15008, 0x02, b""),
            frame(15008, 1000, 0x12, b""),
            frame(1000, 15008, 0x18, &[22, 3, 1, 0, 1, 9]),
            frame(15008, 1000, 0x18, &[22, 3, 3, 0, 1, 9]),
            frame(1000, 80, 0x02, b""),
        ];
        assert_eq!(syns(&frames, 15008), 1);
        assert_eq!(syns(&frames, 80), 1);
        assert_eq!(syns_from(&frames, "10.0.0.1".parse().unwrap(), 80), 1);
        assert_eq!(syns_from(&frames, "10.0.0.2".parse().unwrap(), 80), 0);
        assert_eq!(tls_bytes(&frames, 15008), 12);
        assert_eq!(tls_bytes(&frames, 80), 0);
        assert!(contains(&frames, &[3, 3, 0]));
        assert!(!contains(&frames, b"plain"));
        let plain = [frame(1, 15008, 0x18, b"GET /"), frame(15008, 1, 0x18, b"HTTP/")];
        assert_eq!(tls_bytes(&plain, 15008), 0);
    }
}
