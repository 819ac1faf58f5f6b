//! Converts addresses, prefixes, ports and gateway references of all messages.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use isthmus_proto::workload as proto;

use super::WireError;
use crate::addr::{GatewayAddress, GatewayDestination, NetworkAddress};
use crate::intern::Interner;
use crate::name::NamespacedHostname;
use crate::ports::HBONE_PORT;

/// Bits in front of the IPv4 address inside an IPv4-mapped IPv6 one.
const MAPPED_BITS: u8 = 96;

/// Reads 4 or 16 bytes; an IPv4-mapped IPv6 address is IPv4.
pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    raw_ip(field, bytes).map(|address| address.to_canonical())
}

fn raw_ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(four.into());
    }
    let sixteen =
        <[u8; 16]>::try_from(bytes).map_err(|_| WireError::Address { field, length: bytes.len() })?;
    Ok(sixteen.into())
}

/// Reads an address with a prefix length; a range of IPv4-mapped IPv6 addresses is one of IPv4.
pub(super) fn range(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, WireError> {
    let address = raw_ip(field, bytes)?;
    let max: u8 = if address.is_ipv4() { 32 } else { 128 };
    let refused = || WireError::Prefix { field, value: length, max };
    let length = u8::try_from(length).map_err(|_| refused())?;
    let range = IpNet::new(address, length).map_err(|_| refused())?;
    Ok(canonical_range(range))
}

fn canonical_range(range: IpNet) -> IpNet {
    let mapped = |address: Ipv6Addr| address.to_ipv4_mapped();
    match range {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_BITS => mapped(v6.addr())
            .and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - MAPPED_BITS).ok())
            .map_or(range, IpNet::V4),
        other => other,
    }
}

pub(super) fn port(field: &'static str, value: u32) -> Result<u16, WireError> {
    u16::try_from(value).map_err(|_| WireError::Port { field, value })
}

/// Reads a list of ports into service port → target port.
pub(super) fn ports(
    field: &'static str,
    ports: Vec<proto::Port>,
) -> Result<std::collections::BTreeMap<u16, u16>, WireError> {
    ports
        .into_iter()
        .map(|wire| {
            // The application protocol does not matter at layer 4.
            let proto::Port { service_port, target_port, app_protocol: _ } = wire;
            Ok((port(field, service_port)?, port(field, target_port)?))
        })
        .collect()
}

/// Reads a reference to a waypoint or network gateway. An absent port is 15008.
pub(super) fn gateway(
    field: &'static str,
    wire: proto::GatewayAddress,
    texts: &mut Interner,
) -> Result<GatewayAddress, WireError> {
    let proto::GatewayAddress { destination, hbone_mtls_port } = wire;
    let destination = match destination.ok_or(WireError::Missing { field })? {
        proto::gateway_address::Destination::Hostname(name) => {
            let proto::NamespacedHostname { namespace, hostname } = name;
            GatewayDestination::Hostname(NamespacedHostname {
                namespace: texts.name(&namespace),
                hostname: texts.name(&hostname),
            })
        }
        proto::gateway_address::Destination::Address(address) => {
            // A gateway is a single address: the prefix length is ignored.
            let proto::NetworkAddress { network, address, length: _ } = address;
            GatewayDestination::Address(NetworkAddress {
                network: texts.name(&network),
                address: ip(field, &address)?,
            })
        }
    };
    let hbone_mtls_port = match port(field, hbone_mtls_port)? {
        0 => HBONE_PORT,
        port => port,
    };
    Ok(GatewayAddress { destination, hbone_mtls_port })
}
