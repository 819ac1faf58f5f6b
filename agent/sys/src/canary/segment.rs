//! A TCP segment without payload as an Ethernet frame, and sending it from an interface.
#![allow(unsafe_code, reason = "no crate builds the address of a packet socket")]

use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Netns;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const TCP: u8 = 6;
const TCP_HEADER: usize = 20;

/// A SYN or a reset.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    /// Hardware address of the receiver.
    pub(super) here: &'a [u8],
    /// Hardware address of the sender.
    pub(super) there: &'a [u8],
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) sequence: u32,
    pub(super) reset: bool,
}

impl Segment<'_> {
    /// The whole frame.
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut frame = [self.here, self.there].concat();
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend([0x08, 0x00]);
                let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
                header.extend(from.octets());
                header.extend(to.octets());
                let sum = checksum(&header);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                frame.extend(header);
                frame.extend(self.tcp(&from.octets(), &to.octets()));
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend([0x86, 0xdd]);
                frame.extend([0x60, 0, 0, 0, 0, 20, TCP, 64]);
                frame.extend(from.octets());
                frame.extend(to.octets());
                frame.extend(self.tcp(&from.octets(), &to.octets()));
            }
            // The caller pairs addresses of one family.
            _ => {}
        }
        frame
    }

    fn tcp(&self, from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut segment = Vec::with_capacity(TCP_HEADER);
        segment.extend(self.from.port().to_be_bytes());
        segment.extend(self.to.port().to_be_bytes());
        segment.extend(self.sequence.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend([0x50, if self.reset { RST } else { SYN }, 0xff, 0xff, 0, 0, 0, 0]);
        let pseudo = [from, to, &[0, TCP, 0, 20], &segment].concat();
        let sum = checksum(&pseudo);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }
}

/// The internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// Sends a frame from an interface.
pub(super) fn send(netns: &Netns, index: u32, frame: &[u8]) -> io::Result<()> {
    let open = || Socket::new(Domain::PACKET, Type::RAW.cloexec(), Some(Protocol::from(0)));
    let socket = netns.run(open).map_err(io::Error::other)??;
    let index = libc::c_int::try_from(index).map_err(io::Error::other)?;
    let family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let whole = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the storage is large enough for every address family and zeroed by `try_init`; the closure writes one
    // whole `sockaddr_ll` into it and reports that length.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = family;
            (*link).sll_ifindex = index;
            (*link).sll_halen = 6;
            *length = whole;
            Ok(())
        })
    }?;
    let sent = socket.send_to(frame, &address)?;
    if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_a_frame_are_valid() {
        for (from, to) in [("169.254.7.126:1", "10.0.0.5:2"), ("[fd16::1]:1", "[fd00::5]:2")] {
            let (from, to) = (from.parse::<SocketAddr>().unwrap(), to.parse::<SocketAddr>().unwrap());
            let mac = [2, 0, 0, 0, 0, 1];
            let frame = Segment { here: &mac, there: &mac, from, to, sequence: 7, reset: false }.frame();
            let (header, addresses) = if from.is_ipv4() { (20, 26..34) } else { (40, 22..54) };
            if from.is_ipv4() {
                assert_eq!(checksum(&frame[14..34]), 0);
            }
            let pseudo = [&frame[addresses], &[0, TCP, 0, 20], &frame[14 + header..]].concat();
            assert_eq!(checksum(&pseudo), 0);
        }
    }
}
