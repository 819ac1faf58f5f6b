//! Hostnames of workloads → the agent's own resolver, in its own namespace.

use std::net::IpAddr;
use std::time::Duration;

use isthmus_dns::Resolver;
use isthmus_model::Hostname;
use isthmus_proxy::{HostLookupError, HostResolver};
use isthmus_rt::BoxFuture;
use isthmus_sys::socket::Sockets;

use super::socket_options::apply_socket_options;
use crate::config::agent::AgentConfig;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks up names with the servers of our `resolv.conf`.
pub(crate) struct SystemResolver(Resolver);

impl SystemResolver {
    pub(crate) fn new(config: &AgentConfig) -> Self {
        let sockets = apply_socket_options(Sockets::host(), &config.sockets);
        Self(Resolver::new(&sockets, config.resolvers.clone(), PATIENCE))
    }
}

impl HostResolver for SystemResolver {
    fn lookup<'a>(&'a self, hostname: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, HostLookupError>> {
        Box::pin(async move {
            let found = self.0.lookup(hostname.as_str()).await;
            found.map(|addresses| addresses.to_vec()).map_err(|error| HostLookupError(error.to_string()))
        })
    }
}
