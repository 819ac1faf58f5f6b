//! Resolves hostnames of workloads with the agent's own DNS servers, in its own network namespace.

use std::net::IpAddr;
use std::time::Duration;

use isthmus_dns::{LookupError, Resolver};
use isthmus_model::Hostname;
use isthmus_proxy::{HostLookupError, HostResolver};
use isthmus_rt::BoxFuture;
use isthmus_sys::socket::Sockets;

use super::socket_options::apply_socket_options;
use crate::config::agent::AgentConfig;

/// Timeout of one DNS server.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Resolver over the name servers of the agent's `resolv.conf`.
pub(crate) struct SystemResolver(Resolver);

impl SystemResolver {
    pub(crate) fn new(config: &AgentConfig) -> Self {
        let sockets = apply_socket_options(Sockets::host(), &config.sockets);
        Self(Resolver::new(&sockets, config.resolvers.clone(), SERVER_TIMEOUT))
    }
}

impl HostResolver for SystemResolver {
    fn lookup<'a>(&'a self, hostname: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, HostLookupError>> {
        Box::pin(async move {
            let found = self.0.lookup(hostname.as_str()).await;
            found.map(|addresses| addresses.to_vec()).map_err(host_lookup_error)
        })
    }
}

fn host_lookup_error(error: LookupError) -> HostLookupError {
    match error {
        LookupError::BadName(_) => HostLookupError::BadName,
        LookupError::NoAddress => HostLookupError::NoAddress,
        LookupError::Refused(rcode) => HostLookupError::Refused { rcode: format!("{rcode:?}") },
        LookupError::NoAnswer(reason) => HostLookupError::NoAnswer { reason },
        LookupError::BadAnswer(_) => HostLookupError::NoAnswer { reason: error.to_string() },
    }
}
