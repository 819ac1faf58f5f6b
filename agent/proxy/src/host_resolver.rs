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
