//! The decision on an outbound connection: where it goes and how it is carried, or why it is not made. Values only; how
//! they come about is [`fn@crate::resolve`]'s.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::{
    Authority, GatewayDestination, HBONE_PORT, Hostname, NamespacedHostname, Service, SpiffeId, Workload,
    WorkloadUid,
};

use crate::endpoint::{EndpointGroup, EndpointId, HostAddress};

/// A decision with its reason, and the destination as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The decision.
    pub decision: Decision,
    /// Why it was made.
    pub reason: Reason,
    /// What the connection is for. For labels and logs.
    pub destination: Destination,
}

/// What to do with an outbound connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Connect.
    Connect(Route),
    /// Connect to the endpoint that was chosen, once its hostname is looked up.
    NeedsAddress(Box<Pending>),
    /// Do not connect.
    Deny(DenyReason),
}

/// How to connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Route {
    /// Connect to the original destination as if the mesh were not there.
    Passthrough {
        /// The original destination.
        to: SocketAddr,
    },
    /// Connect to the chosen endpoint in plain TCP.
    Tcp(TcpTarget),
    /// Open one tunnel.
    Hbone(TunnelTarget),
    /// Open a tunnel to a network gateway, and another one inside it. Boxed: the arms above are the hot ones.
    DoubleHbone(Box<DoubleTunnelTarget>),
}

/// A plain TCP upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpTarget {
    /// The application.
    pub addr: SocketAddr,
    /// The endpoint.
    pub pick: Pick,
}

/// The peer of a tunnel: an endpoint, a waypoint or a network gateway.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelTarget {
    /// Its HBONE port.
    pub addr: SocketAddr,
    /// The `:authority` of the CONNECT.
    pub authority: Authority,
    /// Identities of which the peer must prove one.
    pub identities: AcceptedIdentities,
    /// The workload at `addr`.
    pub pick: Pick,
}

/// A tunnel inside a tunnel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DoubleTunnelTarget {
    /// The tunnel to the network gateway.
    pub outer: TunnelTarget,
    /// The tunnel inside it, to an endpoint that the gateway chooses.
    pub inner: InnerTunnelTarget,
    /// The workload that stands for the endpoints behind the gateway.
    pub remote: Pick,
}

/// The tunnel inside a tunnel. Its peer is chosen by the gateway, so it has no address here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InnerTunnelTarget {
    /// The `:authority` of its CONNECT.
    pub authority: Authority,
    /// Identities of which the peer must prove one.
    pub identities: AcceptedIdentities,
}

/// SPIFFE identities of which a peer must prove one. Never empty: a peer of which no identity is accepted could not be
/// verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcceptedIdentities(Vec<SpiffeId>);

/// A workload that was chosen, and what for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pick {
    /// What it was chosen for.
    pub role: Role,
    /// The service it was chosen for; `None` when the address or reference names this workload alone.
    pub service: Option<NamespacedHostname>,
    /// The port of that service, or of the workload.
    pub port: u16,
    /// The workload.
    pub workload: Arc<Workload>,
    /// Number of endpoints that took part in the choice, those included that are to be avoided.
    pub of: usize,
    /// The address, where the workload is known by its hostname only.
    pub host: Option<HostAddress>,
}

/// What a workload is chosen for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// It is the destination, or stands for the endpoints of another network.
    Endpoint,
    /// It is the destination's waypoint.
    Waypoint,
    /// It is the gateway to another network.
    Gateway,
}

/// What was chosen for a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Picks<'a> {
    /// Nothing: the destination was given.
    None,
    /// The peer itself.
    Peer(&'a Pick),
    /// The workload that stands for the endpoints of another network, and the gateway to them.
    ThroughGateway {
        /// The former.
        remote: &'a Pick,
        /// The latter.
        gateway: &'a Pick,
    },
}

/// A route whose endpoint is chosen but known by its hostname only. It borrows nothing, so the lookup may take its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pending {
    /// The workload that TCP connects to.
    pub(crate) pick: Pick,
    /// The port of the workload.
    pub(crate) port: u16,
    pub(crate) carrier: PendingCarrier,
}

/// How a pending route will be carried, with everything that does not depend on the address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PendingCarrier {
    Tcp,
    /// A tunnel to the endpoint itself.
    Hbone(AcceptedIdentities),
    /// A tunnel to a waypoint.
    Waypoint {
        identities: AcceptedIdentities,
        authority: Authority,
    },
    /// A tunnel to a gateway, with another one inside. Both CONNECTs ask for the same.
    Gateway {
        identities: AcceptedIdentities,
        inner: InnerTunnelTarget,
        remote: Pick,
    },
}

/// What a connection is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Destination {
    /// The chosen workload; through a waypoint, the waypoint; on another network, its gateway.
    pub workload: Option<Arc<Workload>>,
    /// The service that was addressed.
    pub service: Option<Arc<Service>>,
}

/// Why a decision was made.
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

/// Why an outbound connection is not made. The texts that ztunnel has too are the same as there: operators search for
/// them.
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
    /// The workload is on another network, and was not addressed by service.
    #[error("no service for target address: {0}")]
    NoServiceForTarget(SocketAddr),
    /// The workload is on another network to which there is no gateway.
    #[error("no valid routing destination for workload: {0}")]
    NoGateway(WorkloadUid),
    /// The gateway to the workload's network cannot be found.
    #[error("unknown network gateway: {0}")]
    UnknownGateway(GatewayDestination),
    /// No peer of the inner tunnel could prove that it serves the service.
    #[error(
        "service {0} has no subject alternative names, so its endpoints on another network cannot be verified"
    )]
    NoServiceIdentities(NamespacedHostname),
    /// The workload has no address of a family that the service allows, and no hostname either.
    #[error("no usable address for workload: {0}: it has none, or none of an IP family of the service")]
    NoAddress(WorkloadUid),
    /// Every endpoint that qualifies is to be avoided for now.
    #[error(
        "no healthy upstream: {0}: every endpoint that qualifies is ejected or was tried by this connection"
    )]
    AllAvoided(SocketAddr),
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

// === impl Role ===

impl Role {
    /// A short name, as in logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
        }
    }
}

// === impl AcceptedIdentities ===

impl AcceptedIdentities {
    /// These; `None` when there are none.
    #[must_use]
    pub fn new(identities: Vec<SpiffeId>) -> Option<Self> {
        (!identities.is_empty()).then_some(Self(identities))
    }

    /// A workload's own identity, behind those of the service that it was chosen for.
    pub(crate) fn of(service: Option<&Service>, workload: &Workload) -> Self {
        let mut identities = service.map(|service| service.subject_alt_names.clone()).unwrap_or_default();
        let own = workload.identity();
        if !identities.contains(&own) {
            identities.push(own);
        }
        Self(identities)
    }

    /// At least one.
    #[must_use]
    pub fn as_slice(&self) -> &[SpiffeId] {
        &self.0
    }
}

// === impl Route ===

impl Route {
    /// Where TCP connects to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        match self {
            Self::Passthrough { to } => *to,
            Self::Tcp(target) => target.addr,
            Self::Hbone(target) => target.addr,
            Self::DoubleHbone(target) => target.outer.addr,
        }
    }

    /// What the first CONNECT asks for; `None` in plain TCP.
    #[must_use]
    pub fn authority(&self) -> Option<&Authority> {
        match self {
            Self::Passthrough { .. } | Self::Tcp(_) => None,
            Self::Hbone(target) => Some(&target.authority),
            Self::DoubleHbone(target) => Some(&target.outer.authority),
        }
    }

    /// What was chosen for it.
    #[must_use]
    pub fn picks(&self) -> Picks<'_> {
        match self {
            Self::Passthrough { .. } => Picks::None,
            Self::Tcp(target) => Picks::Peer(&target.pick),
            Self::Hbone(target) => Picks::Peer(&target.pick),
            Self::DoubleHbone(target) => {
                Picks::ThroughGateway { remote: &target.remote, gateway: &target.outer.pick }
            }
        }
    }

    /// A short name of the arm, for logs.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Passthrough { .. } => "passthrough",
            Self::Tcp(_) => "tcp",
            Self::Hbone(_) => "hbone",
            Self::DoubleHbone(_) => "double hbone",
        }
    }
}

// === impl Pick ===

impl Pick {
    /// Its endpoint group; `None` without a service.
    #[must_use]
    pub fn group(&self) -> Option<EndpointGroup> {
        Some(EndpointGroup { service: self.service.clone()?, port: self.port })
    }

    /// What of the group it is: the workload, or one of several addresses of its hostname.
    #[must_use]
    pub fn endpoint(&self) -> EndpointId {
        let address = self.host.filter(|host| host.of > 1).map(|host| host.address);
        EndpointId { workload: self.workload.uid.clone(), address }
    }
}

// === impl Picks ===

impl<'a> Picks<'a> {
    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = &'a Pick> {
        let (first, second) = match self {
            Self::None => (None, None),
            Self::Peer(pick) => (Some(pick), None),
            Self::ThroughGateway { remote, gateway } => (Some(remote), Some(gateway)),
        };
        first.into_iter().chain(second)
    }
}

// === impl Pending ===

impl Pending {
    /// The workload whose address is missing.
    #[must_use]
    pub fn workload(&self) -> &Arc<Workload> {
        &self.pick.workload
    }

    /// The hostname to look up.
    #[must_use]
    pub fn hostname(&self) -> &Hostname {
        &self.pick.workload.hostname
    }

    /// The endpoint group of what was chosen.
    pub(crate) fn group(&self) -> Option<EndpointGroup> {
        self.pick.group()
    }

    /// The route of this very choice, with the workload at one of its hostname's addresses.
    #[must_use]
    pub fn resolve(mut self, host: HostAddress) -> Route {
        // Each address takes part in the choice, as the endpoints do that are workloads.
        self.pick.of += host.of.saturating_sub(1);
        self.pick.host = Some(host);
        self.at(host.address)
    }

    /// The route of this very choice, with the workload at `address`.
    pub(crate) fn at(self, address: IpAddr) -> Route {
        let Self { pick, port, carrier } = self;
        let addr = SocketAddr::new(address, port);
        match carrier {
            PendingCarrier::Tcp => Route::Tcp(TcpTarget { addr, pick }),
            PendingCarrier::Hbone(identities) => Route::Hbone(TunnelTarget {
                addr: SocketAddr::new(address, HBONE_PORT),
                authority: Authority::Ip(addr),
                identities,
                pick,
            }),
            PendingCarrier::Waypoint { identities, authority } => {
                Route::Hbone(TunnelTarget { addr, authority, identities, pick })
            }
            PendingCarrier::Gateway { identities, inner, remote } => {
                let outer = TunnelTarget { addr, authority: inner.authority.clone(), identities, pick };
                Route::DoubleHbone(Box::new(DoubleTunnelTarget { outer, inner, remote }))
            }
        }
    }
}

// === impl Resolved ===

impl Resolved {
    pub(crate) fn deny(reason: DenyReason, destination: Destination) -> Self {
        Self { decision: Decision::Deny(reason), reason: Reason::Denied, destination }
    }
}
