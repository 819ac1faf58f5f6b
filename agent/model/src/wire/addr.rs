//! Converts addresses, prefixes, ports and gateway references of all messages, as they are written there.

use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_proto::workload as proto;

use super::WireError;
use crate::addr::{GatewayAddress, GatewayDestination, NetworkAddress};
use crate::intern::Interner;
use crate::name::NamespacedHostname;

/// Reads 4 or 16 bytes.
pub(super) fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(four.into());
    }
    let sixteen =
        <[u8; 16]>::try_from(bytes).map_err(|_| WireError::Address { field, length: bytes.len() })?;
    Ok(sixteen.into())
}

/// Reads an address with a prefix length.
pub(super) fn range(field: &'static str, bytes: &[u8], length: u32) -> Result<IpNet, WireError> {
    let address = ip(field, bytes)?;
    let max: u8 = if address.is_ipv4() { 32 } else { 128 };
    let refused = || WireError::Prefix { field, value: length, max };
    let length = u8::try_from(length).map_err(|_| refused())?;
    IpNet::new(address, length).map_err(|_| refused())
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

/// Reads a reference to a waypoint or network gateway.
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
    Ok(GatewayAddress { destination, hbone_mtls_port: port(field, hbone_mtls_port)? })
}
