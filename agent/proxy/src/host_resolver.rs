//! Interface to resolve hostnames of workloads that have no address (ServiceEntry endpoints by DNS name). The
//! implementation, its upstream servers and its cache are the composition root's.

use std::net::IpAddr;

use isthmus_model::Hostname;
use isthmus_rt::BoxFuture;

/// Resolves hostnames outside of the mesh.
pub trait HostResolver: Send + Sync {
    /// The addresses of a hostname, of both families, in no particular order; never empty.
    ///
    /// # Errors
    /// When the name has no address or no server answered.
    fn lookup<'a>(&'a self, hostname: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, HostLookupError>>;
}

/// Why a hostname did not resolve; the text goes to the access log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostLookupError {
    /// This role has no resolver.
    #[error("no resolver is configured")]
    NoResolver,
    /// The `ServiceEntry` or `WorkloadEntry` has something else than a DNS name.
    #[error("it is not a valid DNS name")]
    BadName,
    /// The name has no address: the name, or its zone, is wrong.
    #[error("it has no address")]
    NoAddress,
    /// The DNS server answered with an error, such as NXDOMAIN.
    #[error("the DNS server answered {rcode}")]
    Refused {
        /// The response code.
        rcode: String,
    },
    /// No DNS server gave a usable answer. The next connection may succeed.
    #[error("no answer: {reason}")]
    NoAnswer {
        /// The error of the last server.
        reason: String,
    },
}

/// Resolves no hostname: for roles and tests without a resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHostResolver;

impl HostResolver for NoHostResolver {
    fn lookup<'a>(&'a self, _: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, HostLookupError>> {
        Box::pin(async { Err(HostLookupError::NoResolver) })
    }
}

/// Picks one of the addresses at random: of the family of the client's destination if there is one, since the client's
/// namespace can route that family.
pub(crate) fn pick_address(addresses: &[IpAddr], like: IpAddr, rng: &mut fastrand::Rng) -> Option<IpAddr> {
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
            (0..40).filter_map(|_| pick_address(&[a, c, b], ip("10.96.0.1"), &mut rng)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [a, b]);
        assert_eq!(pick_address(&[a, c], ip("fd96::1"), &mut rng), Some(c));
        assert_eq!(pick_address(&[c], ip("10.96.0.1"), &mut rng), Some(c));
        assert_eq!(pick_address(&[], ip("10.96.0.1"), &mut rng), None);
    }
}
