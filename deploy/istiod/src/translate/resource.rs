//! Resources as they go on the stream: named, versioned by their bytes, and encoded so that the same content always is
//! the same bytes.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;

use isthmus_proto::discovery::Resource;
use isthmus_proto::security::Authorization;
use isthmus_proto::type_url;
use isthmus_proto::workload::{NetworkAddress, Service, Workload};
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint};
use prost_types::Any;

/// Field numbers of `istio.workload.Address`.
const WORKLOAD: u32 = 1;
const SERVICE: u32 = 2;

/// A workload as an Address.
pub(crate) fn workload(workload: &Workload) -> Resource {
    let ips = workload.addresses.iter().filter_map(|octets| ip(octets));
    let aliases = ips.map(|ip| format!("{}/{ip}", workload.network)).collect();
    // A map is encoded in any order. One message per entry, in the order of the keys, means the same when it is read:
    // parts of a message that follow one another are merged.
    let mut bytes = Workload { services: Default::default(), ..workload.clone() }.encode_to_vec();
    let services: BTreeMap<_, _> = workload.services.iter().collect();
    for (key, ports) in services {
        let one = Workload { services: [(key.clone(), ports.clone())].into(), ..Workload::default() };
        bytes.extend(one.encode_to_vec());
    }
    resource(workload.uid.clone(), aliases, type_url::ADDRESS, address(WORKLOAD, &bytes))
}

/// A service as an Address.
pub(crate) fn service(service: &Service) -> Resource {
    let aliases = service.addresses.iter().filter_map(sort_key).collect();
    let name = format!("{}/{}", service.namespace, service.hostname);
    resource(name, aliases, type_url::ADDRESS, address(SERVICE, &service.encode_to_vec()))
}

/// A policy.
pub(crate) fn policy(policy: &Authorization) -> Resource {
    let name = format!("{}/{}", policy.namespace, policy.name);
    resource(name, Vec::new(), type_url::AUTHORIZATION, policy.encode_to_vec())
}

/// `network/ip`, by which a virtual address is found and sorted.
pub(crate) fn sort_key(address: &NetworkAddress) -> Option<String> {
    Some(format!("{}/{}", address.network, ip(&address.address)?))
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}

/// The one field of an Address.
fn address(field: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(content.len() + 8);
    encode_key(field, WireType::LengthDelimited, &mut bytes);
    encode_varint(content.len() as u64, &mut bytes);
    bytes.extend_from_slice(content);
    bytes
}

fn resource(name: String, aliases: Vec<String>, type_url: &str, value: Vec<u8>) -> Resource {
    let mut hasher = DefaultHasher::new();
    hasher.write(&value);
    let version = format!("{:016x}", hasher.finish());
    Resource { version, resource: Some(Any { type_url: type_url.to_owned(), value }), name, aliases }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::workload::{Address, Port, PortList, address::Type};

    use super::*;

    #[test]
    fn the_same_workload_is_the_same_bytes_and_reads_back() {
        let ports =
            |port| PortList { ports: vec![Port { service_port: port, target_port: port, app_protocol: 0 }] };
        let services =
            |range: std::ops::Range<u32>| range.map(|at| (format!("a/{at}"), ports(at + 1))).collect();
        let one = Workload { uid: "u".to_owned(), services: services(0..20), ..Workload::default() };
        let made = workload(&one);
        for _ in 0..8 {
            let again = Workload { services: services(0..20), ..one.clone() };
            assert_eq!(workload(&again), made);
        }
        let other = Workload { services: services(0..19), ..one.clone() };
        assert_ne!(workload(&other).version, made.version);
        let read = Address::decode(made.resource.unwrap().value.as_slice()).unwrap();
        assert_eq!(read.r#type, Some(Type::Workload(one)));
    }
}
