//! Addresses of workloads that are known by a hostname only. Who looks them up, and how long an answer holds, is the
//! root's choice.

use std::net::IpAddr;

use isthmus_model::Hostname;
use isthmus_rt::BoxFuture;

/// Looks up hostnames that are not the mesh's.
pub trait HostResolver: Send + Sync {
    /// The addresses of a name, of both families, in no order; never an empty list.
    fn lookup<'a>(&'a self, hostname: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, HostLookupError>>;
}

/// Why a name has no address, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostLookupError(pub String);

/// No name has an address.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHostResolver;

impl HostResolver for NoHostResolver {
    fn lookup<'a>(&'a self, _: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, HostLookupError>> {
        Box::pin(async { Err(HostLookupError("there is no resolver".to_owned())) })
    }
}

/// One of the addresses: of the family that the client used, if there is one.
pub(crate) fn one_of(addresses: &[IpAddr], like: IpAddr, rng: &mut fastrand::Rng) -> Option<IpAddr> {
    let same: Vec<_> =
        addresses.iter().filter(|address| address.is_ipv4() == like.is_ipv4()).copied().collect();
    rng.choice(if same.is_empty() { addresses } else { &same }).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_family_is_preferred_and_not_required() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (a, b, c) = (ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1"));
        let mut rng = fastrand::Rng::with_seed(1);
        let mut seen: Vec<_> =
            (0..40).filter_map(|_| one_of(&[a, c, b], ip("10.96.0.1"), &mut rng)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [a, b]);
        assert_eq!(one_of(&[a, c], ip("fd96::1"), &mut rng), Some(c));
        assert_eq!(one_of(&[c], ip("10.96.0.1"), &mut rng), Some(c));
        assert_eq!(one_of(&[], ip("10.96.0.1"), &mut rng), None);
    }
}
