//! What the caller of [`crate::resolve_with`] knows besides the mesh: whom to avoid for now, and addresses that it has
//! looked up. The decision stays pure: the same hints give the same outcome.

use std::net::IpAddr;

use isthmus_model::{Hostname, NamespacedHostname, Workload};

/// What is known besides the mesh.
pub trait Hints {
    /// Whether this one shall not be chosen now.
    fn avoids(&self, candidate: &Candidate<'_>) -> bool;

    /// The address of a workload that is known by this name only.
    fn address_of(&self, hostname: &Hostname) -> Option<IpAddr>;
}

/// Nothing is known.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHints;

/// One that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// What for.
    pub role: Role,
    /// The service it would be chosen for: the one that was asked for, or the waypoint's or gateway's own. `None` when
    /// it is the only one that is meant.
    pub service: Option<&'a NamespacedHostname>,
    /// The port of that service; without one, of the workload.
    pub port: u16,
    /// The workload.
    pub workload: &'a Workload,
}

/// What a workload is chosen for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// It is the destination, or stands for it on this side of a gateway.
    Endpoint,
    /// It is the destination's waypoint.
    Waypoint,
    /// It is the gateway to another network.
    Gateway,
}

impl Role {
    /// A short name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
        }
    }
}

impl Hints for NoHints {
    fn avoids(&self, _: &Candidate<'_>) -> bool {
        false
    }

    fn address_of(&self, _: &Hostname) -> Option<IpAddr> {
        None
    }
}
