//! Addresses with their network, and references to gateways and waypoints.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::name::{Hostname, NamespacedHostname, NetworkId};

/// An address in a network; the same address may exist in another network.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NetworkAddress {
    /// The network.
    pub network: NetworkId,
    /// The address, canonical (an IPv4-mapped one is IPv4).
    pub address: IpAddr,
}

/// The address of a waypoint or network gateway.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GatewayAddress {
    /// By name or by address.
    pub destination: GatewayDestination,
    /// Its HBONE port, usually 15008.
    pub hbone_mtls_port: u16,
}

/// A reference to a gateway.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum GatewayDestination {
    /// A service or workload by name.
    Hostname(NamespacedHostname),
    /// A service VIP or a workload address.
    Address(NetworkAddress),
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

impl fmt::Display for GatewayDestination {
    /// `<network>/<ip>` or `<namespace>/<hostname>`, as in the config dump.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(name) => name.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// The authority of a CONNECT: `10.0.0.1:80`, `[2001:db8::1]:80` or `host.ns.svc.cluster.local:80`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Authority {
    /// An address.
    Ip(SocketAddr),
    /// A service by hostname, which the receiver resolves.
    Host {
        /// The service's fully qualified name.
        hostname: Hostname,
        /// The service port.
        port: u16,
    },
}

/// Text that is not the authority of a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no valid authority pseudo header: {0}")]
pub struct BadAuthority(String);

impl Authority {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Host { hostname, port } => write!(f, "{hostname}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = BadAuthority;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadAuthority(text.to_owned());
        if let Ok(address) = text.parse::<SocketAddr>() {
            // An IPv4 address has one spelling, in policies, logs and on the wire.
            let is_mapped = address.ip() != address.ip().to_canonical();
            return if is_mapped { Err(bad()) } else { Ok(Self::Ip(address)) };
        }
        let (hostname, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*');
        if hostname.is_empty() || !hostname.chars().all(plain) || port.starts_with('+') {
            return Err(bad());
        }
        Ok(Self::Host { hostname: hostname.into(), port: port.parse().map_err(|_| bad())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_addresses_or_hostnames_with_a_port() {
        for good in ["10.0.0.1:80", "[2001:db8::1]:80", "helloworld.sample.svc.cluster.local:5000"] {
            assert_eq!(good.parse::<Authority>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "host",
            "host:",
            ":80",
            "10.0.0.1",
            "host:+80",
            "host:65536",
            "ho st:80",
            "a/b:80",
            "[::1:80",
            "[::ffff:10.0.0.1]:80",
            "[::ffff:a00:1]:80",
        ] {
            assert!(bad.parse::<Authority>().is_err(), "{bad}");
        }
    }
}
