//! The verdict on an outbound connection: where it goes and how, or why it does not go. Values only.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::{
    Authority, GatewayDestination, Hostname, NamespacedHostname, Service, SpiffeId, Workload, WorkloadUid,
};

use crate::hints::Role;

/// What to do with an outbound connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// Connect to the original destination as if the mesh were not there.
    Passthrough {
        /// The original destination.
        to: SocketAddr,
    },
    /// Connect to a chosen workload in plain TCP.
    Tcp(Upstream),
    /// Open one tunnel.
    Hbone(Upstream),
    /// Open a tunnel to a gateway, and another inside it to the workload.
    DoubleHbone(Upstream),
    /// Do not connect.
    Deny(DenyReason),
}

/// Where a tunnel or connection leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// Where TCP connects to: a pod's 15008, a gateway, a waypoint, or the application itself.
    pub tcp_to: SocketAddr,
    /// What the CONNECT asks for. Without a tunnel: the same as `tcp_to`.
    pub authority: Authority,
    /// Identities of which the peer at `tcp_to` must prove one. Empty without a tunnel.
    pub identities: Vec<SpiffeId>,
    /// The tunnel inside, for a double one.
    pub inner: Option<Inner>,
    /// The workload at `tcp_to`: the destination, a waypoint or a gateway.
    pub workload: Arc<Workload>,
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
    /// Who was chosen on the way: the endpoint or its waypoint; and, where it is on another network, the gateway.
    pub picks: Vec<Pick>,
}

/// One that was chosen, and from how many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pick {
    /// What for.
    pub role: Role,
    /// The service it was chosen for; `None` when only this workload was meant.
    pub service: Option<NamespacedHostname>,
    /// The port of that service, or of the workload.
    pub port: u16,
    /// The workload.
    pub workload: Arc<Workload>,
    /// How many it was chosen from, those included that are to be avoided.
    pub of: usize,
}

/// The tunnel inside a tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inner {
    /// What its CONNECT asks for.
    pub authority: Authority,
    /// Identities of which the far end must prove one; never empty.
    pub identities: Vec<SpiffeId>,
}

/// A route with its reason, and whom it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The route.
    pub route: Route,
    /// Why this route.
    pub reason: Reason,
    /// Whom the connection is for, as far as it is known. For labels and logs.
    pub destination: Destination,
}

/// Whom a connection is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Destination {
    /// The chosen workload; through a waypoint, the waypoint; on another network, its gateway.
    pub workload: Option<Arc<Workload>>,
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
}

/// Why a route was taken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Nothing is known of the destination.
    Unknown,
    /// The service asks for no load balancing.
    PassthroughService,
    /// The destination is a workload.
    Workload,
    /// The destination is a service, and this an endpoint of it.
    Service,
    /// The destination is a service that has a waypoint.
    ServiceWaypoint,
    /// The destination is a workload that has a waypoint.
    WorkloadWaypoint,
    /// The chosen endpoint is on another network.
    OtherNetwork,
    /// See the [`DenyReason`].
    Denied,
}

/// Why an outbound connection is not made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DenyReason {
    /// The agent's own port on a loopback address.
    #[error("attempted recursive call to ourselves")]
    Recursive,
    /// There is a waypoint, and it cannot be found; it is never bypassed.
    #[error("unknown waypoint: {0}")]
    UnknownWaypoint(GatewayDestination),
    /// The service is known, and none of its endpoints qualifies.
    #[error("no healthy upstream: {0}")]
    NoHealthyUpstream(SocketAddr),
    /// The workload is on another network, and was not asked for by service.
    #[error("no service for target address: {0}")]
    NoServiceForTarget(SocketAddr),
    /// The workload is on another network to which there is no gateway.
    #[error("no valid routing destination for workload: {0}")]
    NoGateway(WorkloadUid),
    /// The gateway to the workload's network cannot be found.
    #[error("unknown network gateway: {0}")]
    UnknownGateway(GatewayDestination),
    /// Nobody at the far end of a double tunnel could prove to be the service.
    #[error(
        "no identities are known for service {0}, so its endpoints on another network cannot be verified"
    )]
    NoServiceIdentities(NamespacedHostname),
    /// The workload has no address of an acceptable family.
    #[error("no address fits for workload: {0}")]
    NoAddress(WorkloadUid),
    /// Everybody who could be chosen is to be avoided for now.
    #[error("no healthy upstream: {0}: all that qualify refused lately")]
    AllAvoided(SocketAddr),
    /// The workload is known by a hostname only, and no address of it was given. Whoever has looked it up asks again,
    /// with the address among the [`crate::Hints`].
    #[error("no address is known of hostname {hostname} of workload {workload}")]
    HostnameOnly {
        /// The workload.
        workload: WorkloadUid,
        /// Its hostname.
        hostname: Hostname,
    },
}

// === impl Reason ===

impl Reason {
    /// A short name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown destination",
            Self::PassthroughService => "passthrough service",
            Self::Workload => "workload",
            Self::Service => "service",
            Self::ServiceWaypoint => "service waypoint",
            Self::WorkloadWaypoint => "workload waypoint",
            Self::OtherNetwork => "other network",
            Self::Denied => "denied",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Resolved ===

impl Resolved {
    pub(crate) fn deny(reason: DenyReason, destination: Destination) -> Self {
        Self { route: Route::Deny(reason), reason: Reason::Denied, destination }
    }
}
