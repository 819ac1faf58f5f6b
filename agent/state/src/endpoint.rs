//! What an endpoint is: the group it belongs to, and what of the group it is. Values only.

use std::net::IpAddr;

use isthmus_model::{NamespacedHostname, WorkloadUid};

/// The endpoints of one port of one service. An ejection counts for its group only, so that a port on which nothing
/// listens does no harm to the service's other ports.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointGroup {
    /// The service that the endpoint was chosen for.
    pub service: NamespacedHostname,
    /// The port of that service.
    pub port: u16,
}

/// What is ejected: a workload, or one of several addresses of its hostname.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointId {
    /// The workload.
    pub workload: WorkloadUid,
    /// One of its hostname's addresses; `None` when the workload is one endpoint.
    pub address: Option<IpAddr>,
}

/// One address of a hostname.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// Number of addresses that the hostname has.
    pub of: usize,
    /// Number of the others that this connection has not tried.
    pub untried: usize,
}
