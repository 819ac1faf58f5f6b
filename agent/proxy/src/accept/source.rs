//! What counts as one client when room is shared out: an address, and the network that it is in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A client's address and network. An IPv6 client may choose any address of its /64, which counts as one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    /// The IPv4 address, or the IPv6 /64.
    address: IpAddr,
    /// The IPv4 /24, or the IPv6 /48: what one party is often given.
    pub(crate) network: IpAddr,
}

impl Source {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => {
                let network = Ipv4Addr::from_bits(v4.to_bits() & !0xff).into();
                Self { address: v4.into(), network }
            }
            IpAddr::V6(v6) => {
                let prefix = |length: u32| Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - length)));
                Self { address: prefix(64).into(), network: prefix(48).into() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_client_is_its_64_and_networks_are_24_and_48() {
        let of = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("10.0.0.1").network, of("10.0.0.255").network);
        assert_ne!(of("10.0.0.1").network, of("10.0.1.1").network);
        assert_eq!(of("fd00::1"), of("fd00::ffff:ffff:ffff:ffff"));
        assert_ne!(of("fd00::1"), of("fd00:0:0:1::1"));
        assert_eq!(of("fd00::1").network, of("fd00:0:0:1::1").network);
        assert_ne!(of("fd00::1").network, of("fd00:0:1::1").network);
    }
}
