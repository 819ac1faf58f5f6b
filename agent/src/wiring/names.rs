//! Hostnames of workloads → the agent's own resolver, in its own namespace.

use std::net::IpAddr;
use std::time::Duration;

use isthmus_dns::Resolver;
use isthmus_model::Hostname;
use isthmus_proxy::{NameError, Names};
use isthmus_rt::BoxFuture;
use isthmus_sys::socket::Sockets;

use super::world::dress;
use crate::config::agent::AgentConfig;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks up names with the servers of our `resolv.conf`.
pub(crate) struct OwnResolver(Resolver);

impl OwnResolver {
    pub(crate) fn new(config: &AgentConfig) -> Self {
        let sockets = dress(Sockets::host(), &config.sockets);
        Self(Resolver::new(&sockets, config.resolvers.clone(), PATIENCE))
    }
}

impl Names for OwnResolver {
    fn lookup<'a>(&'a self, hostname: &'a Hostname) -> BoxFuture<'a, Result<Vec<IpAddr>, NameError>> {
        Box::pin(async move {
            let found = self.0.lookup(hostname.as_str()).await;
            found.map(|addresses| addresses.to_vec()).map_err(|error| NameError(error.to_string()))
        })
    }
}
