//! Services by ranges of virtual addresses. A lookup tries each prefix length in use in that network (few, usually none),
//! so its cost does not grow with the number of services.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use isthmus_model::service::NetworkCidr;
use isthmus_model::{NetworkAddress, NetworkId, Service};

use crate::index::{Map, Multi};

/// Number of ranges by family (whether IPv6) and prefix length.
type Lengths = BTreeMap<(bool, u8), usize>;

/// Services by range.
#[derive(Clone, Debug, Default)]
pub(crate) struct CidrIndex {
    by_range: Multi<NetworkCidr, Arc<Service>>,
    lengths: Map<NetworkId, Arc<Lengths>>,
}

impl CidrIndex {
    /// Adds a range of a service, which must not be stored already.
    pub(crate) fn insert(&mut self, range: &NetworkCidr, service: &Arc<Service>) {
        self.by_range.insert(range, Arc::clone(service), |_| false);
        let mut lengths = self.lengths.get(&range.network).cloned().unwrap_or_default();
        *Arc::make_mut(&mut lengths).entry(length_of(range)).or_default() += 1;
        self.lengths.insert_mut(range.network.clone(), lengths);
    }

    /// Removes what [`Self::insert`] added.
    pub(crate) fn remove(&mut self, range: &NetworkCidr, service: &Arc<Service>) {
        self.by_range.remove(range, |stored| Arc::ptr_eq(stored, service));
        let Some(mut lengths) = self.lengths.get(&range.network).cloned() else { return };
        let counts = Arc::make_mut(&mut lengths);
        match counts.get_mut(&length_of(range)) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&length_of(range))),
        }
        if lengths.is_empty() {
            self.lengths.remove_mut(&range.network);
        } else {
            self.lengths.insert_mut(range.network.clone(), lengths);
        }
    }

    /// Every service with a range that contains the address, with the range's length, longest first.
    pub(crate) fn containing<'s, 'a>(
        &'s self,
        at: &'a NetworkAddress,
    ) -> impl Iterator<Item = (u8, &'s Arc<Service>)> + use<'s, 'a> {
        let is_v6 = at.address.is_ipv6();
        let lengths = self.lengths.get(&at.network).into_iter().flat_map(|lengths| lengths.keys().rev());
        lengths.filter(move |(v6, _)| *v6 == is_v6).flat_map(move |(_, length)| {
            let range =
                range_of(at.address, *length).map(|cidr| NetworkCidr { network: at.network.clone(), cidr });
            let found = range.map_or(&[][..], |range| self.by_range.get(&range));
            found.iter().map(|service| (*length, service))
        })
    }
}

fn length_of(range: &NetworkCidr) -> (bool, u8) {
    (matches!(range.cidr, IpNet::V6(_)), range.cidr.prefix_len())
}

fn range_of(address: IpAddr, length: u8) -> Option<IpNet> {
    IpNet::new(address, length).ok().map(|range| range.trunc())
}
