//! The addresses of a workload that is known by its hostname only: each is an endpoint of its own, tried and ejected by
//! itself. Choosing one of them is pure; who looked them up is the caller's business.

use std::net::IpAddr;

use isthmus_model::WorkloadUid;

use crate::avoid::Avoid;
use crate::endpoint::{EndpointGroup, EndpointId, HostAddress};
use crate::route::Pending;

/// Chooses one of the addresses at random for a client whose destination is `like`. Addresses that the connection has
/// tried are out of the question. Of the others the same family comes first, since the client's namespace can route it,
/// and those that are not ejected; ejected ones are used when there is nothing else.
#[must_use]
pub fn choose_address(
    pending: &Pending,
    addresses: &[IpAddr],
    like: IpAddr,
    avoid: &Avoid<'_>,
    rng: &mut fastrand::Rng,
) -> Option<HostAddress> {
    let uid = &pending.workload().uid;
    let left: Vec<IpAddr> =
        addresses.iter().copied().filter(|address| !avoid.has_tried(uid, *address)).collect();
    let group = pending.group();
    let group = group.as_ref();
    let rank =
        |address: &IpAddr| (is_ejected(avoid, group, uid, *address), address.is_ipv4() != like.is_ipv4());
    let best = left.iter().map(rank).min()?;
    let best: Vec<IpAddr> = left.iter().copied().filter(|address| rank(address) == best).collect();
    let address = rng.choice(best)?;
    Some(HostAddress { address, of: addresses.len(), untried: left.len() - 1 })
}

fn is_ejected(avoid: &Avoid<'_>, group: Option<&EndpointGroup>, uid: &WorkloadUid, address: IpAddr) -> bool {
    let (Some(ejected), Some(group)) = (avoid.ejected, group) else { return false };
    ejected.has(group, &EndpointId { workload: uid.clone(), address: Some(address) })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::avoid::{Ejected, Ejection};
    use crate::fixture::{NETWORK, pod, rng, service, serving, snapshot};
    use crate::resolve;
    use crate::route::Decision;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pending() -> Pending {
        let db = service("db", "10.96.0.1");
        let mut named = serving(pod("db", "10.0.0.1"), &db);
        named.addresses.clear();
        named.hostname = "db.example.com".into();
        let state = snapshot(&[named], &[db]);
        let to = "10.96.0.1:80".parse().unwrap();
        let resolved = resolve(&state, &pod("client", "10.0.0.9"), to, &NETWORK.into(), &mut rng());
        let Decision::NeedsAddress(pending) = resolved.decision else { panic!("{resolved:?}") };
        *pending
    }

    /// Every choice that is made in many draws.
    fn choices(addresses: &[IpAddr], like: &str, avoid: &Avoid<'_>) -> Vec<IpAddr> {
        let (pending, mut rng) = (pending(), rng());
        let mut seen: Vec<_> = (0..60)
            .filter_map(|_| choose_address(&pending, addresses, ip(like), avoid, &mut rng))
            .map(|chosen| chosen.address)
            .collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn the_clients_family_is_preferred_and_not_required() {
        let (a, b, c) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"));
        let avoid = Avoid::default();
        assert_eq!(choices(&[a, c, b], "10.96.0.1", &avoid), [a, b]);
        assert_eq!(choices(&[a, c], "fd96::1", &avoid), [c]);
        assert_eq!(choices(&[c], "10.96.0.1", &avoid), [c]);
        assert!(choices(&[], "10.96.0.1", &avoid).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn tried_addresses_are_never_chosen_again_and_ejected_ones_last() {
        let (a, b, c) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"));
        let (all, uid) = ([a, b, c], pending().workload().uid.clone());
        let tried = [(uid.clone(), a)];
        let avoid = Avoid { tried_addresses: &tried, ..Avoid::default() };
        assert_eq!(choices(&all, "10.96.0.1", &avoid), [b]);
        let chosen = choose_address(&pending(), &all, a, &avoid, &mut rng()).unwrap();
        assert_eq!((chosen.of, chosen.untried), (3, 1));
        let group = pending().group().unwrap();
        let until = Instant::now() + Duration::from_secs(1);
        let eject = |address| {
            (EndpointId { workload: uid.clone(), address: Some(address) }, Ejection { until, strikes: 1 })
        };
        let endpoints = HashMap::from([(group, HashMap::from([eject(b)]))]);
        let ejected = Some(Ejected { endpoints: &endpoints, now: Instant::now() });
        let avoid = Avoid { ejected, ..avoid };
        assert_eq!(choices(&all, "10.96.0.1", &avoid), [c], "another family rather than an ejected address");
        assert_eq!(choices(&[a, b], "10.96.0.1", &avoid), [b], "an ejected address rather than none");
        assert!(choices(&[a], "10.96.0.1", &avoid).is_empty());
    }
}
