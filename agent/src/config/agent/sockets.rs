//! Socket options of listeners and of captured and dialled connections.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use isthmus_sys::socket::{Keepalive, LocalCongestion};

use crate::config::source::Reader;

/// Options that sockets are created with.
#[derive(Debug, Clone)]
pub struct SocketConfig {
    /// `SO_MARK` of every socket in a pod's namespace: the redirect rules leave packets with it alone.
    pub mark: u32,
    /// `SO_REUSEPORT` on listeners.
    pub reuse_port: bool,
    /// TCP keepalive of captured and dialled connections; `None`: off.
    pub keepalive: Option<Keepalive>,
    /// Whether IPv6 is used (`IPV6_ENABLED`).
    pub ipv6: bool,
    /// Whether the application sees the client's address as source (`ENABLE_ORIG_SRC`); `None`: if the kernel allows it.
    pub original_source: Option<bool>,
    /// Congestion control of connections between the agent and applications (`LOCAL_CONGESTION_CONTROL`).
    pub local_congestion: LocalCongestion,
}

impl SocketConfig {
    /// Every local address: the IPv6 wildcard covers both families.
    #[must_use]
    pub fn wildcard(&self) -> IpAddr {
        if self.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
    }
}

pub(super) fn read_sockets(r: &mut Reader<'_>, ipv6: bool) -> SocketConfig {
    // Parsed even when keepalive is off, so that a bad value is always reported.
    let keepalive = Keepalive {
        time: r.duration("KEEPALIVE_TIME", Duration::from_secs(180)),
        interval: r.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180)),
        retries: r.parsed("KEEPALIVE_RETRIES", 9, "a number"),
        user_timeout: r.flag("USER_TIMEOUT_ENABLED", false),
    };
    let keepalive = r.flag("KEEPALIVE_ENABLED", true).then_some(keepalive);
    SocketConfig {
        mark: r.parsed("PACKET_MARK", 0x539, "a number"),
        reuse_port: r.flag("INPOD_PORT_REUSE", true),
        keepalive,
        ipv6,
        original_source: r.parsed_opt("ENABLE_ORIG_SRC", "true or false"),
        local_congestion: r.parsed("LOCAL_CONGESTION_CONTROL", LocalCongestion::Auto, "a name"),
    }
}
