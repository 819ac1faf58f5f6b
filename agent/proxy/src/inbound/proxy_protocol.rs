//! PROXY protocol v2 header for an application that expects one on its port (a sandwiched waypoint): source and
//! destination of the connection, and the client's identity as TLV 0xD0. Only encodes and writes; does not decide when.

use std::io;
use std::net::{IpAddr, SocketAddr};

use isthmus_model::SpiffeId;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const TLV_IDENTITY: u8 = 0xd0;

/// Writes the header. Must precede all payload bytes.
///
/// # Errors
/// When the connection to the application fails.
pub(super) async fn write_header(
    app: &mut (impl AsyncWrite + Unpin),
    source: SocketAddr,
    destination: SocketAddr,
    peer: &SpiffeId,
) -> io::Result<()> {
    app.write_all(&header(source, destination, peer)).await
}

fn header(source: SocketAddr, destination: SocketAddr, peer: &SpiffeId) -> Vec<u8> {
    let mut body = Vec::new();
    let family = if let (IpAddr::V4(from), IpAddr::V4(to)) = (source.ip(), destination.ip()) {
        body.extend(from.octets());
        body.extend(to.octets());
        TCP_OVER_IPV4
    } else {
        body.extend(as_v6(source.ip()));
        body.extend(as_v6(destination.ip()));
        TCP_OVER_IPV6
    };
    body.extend(source.port().to_be_bytes());
    body.extend(destination.port().to_be_bytes());
    // Identities are a few dozen bytes. One that exceeds the length field is truncated, so that the header stays valid.
    let identity = peer.to_string();
    let length = u16::try_from(identity.len()).unwrap_or(u16::MAX);
    body.push(TLV_IDENTITY);
    body.extend(length.to_be_bytes());
    body.extend(&identity.as_bytes()[..usize::from(length)]);
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_AND_COMMAND, family]);
    header.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend(body);
    header
}

fn as_v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_byte_for_byte_that_of_ztunnel() {
        let peer: SpiffeId = "spiffe://td/ns/n/sa/a".parse().unwrap();
        let got = header("10.0.0.1:258".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), &peer);
        let mut want = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11".to_vec();
        want.extend([0, 12 + 3 + 21]);
        want.extend([10, 0, 0, 1, 10, 0, 0, 2, 1, 2, 0, 80, 0xd0, 0, 21]);
        want.extend(b"spiffe://td/ns/n/sa/a");
        assert_eq!(got, want);
        let v6 = header("[2001:db8::1]:1".parse().unwrap(), "10.0.0.2:80".parse().unwrap(), &peer);
        assert_eq!(v6[13], 0x21);
        assert_eq!(usize::from(v6[15]), v6.len() - 16);
    }
}
