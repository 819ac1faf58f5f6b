//! IP addresses in the form of the workload API. Pure; knows no kind of resource.

use std::net::IpAddr;

use isthmus_proto::workload::NetworkAddress;

/// An address on a network.
pub(crate) fn network_address(network: &str, address: IpAddr) -> NetworkAddress {
    NetworkAddress { network: network.to_owned(), address: octets(address), length: None }
}

/// The octets of an address, in network order.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
