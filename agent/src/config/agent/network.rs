//! Ports that the agent listens on, and the DNS servers that it forwards to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use isthmus_model::AgentPorts;

use crate::config::mesh::ProxyConfig;
use crate::config::source::Reader;

pub(super) fn read_ports(r: &mut Reader<'_>, proxy: &ProxyConfig) -> AgentPorts {
    let default = AgentPorts::WELL_KNOWN;
    AgentPorts {
        dns: read_dns_port(r, proxy).unwrap_or(default.dns),
        admin: proxy.admin_port.unwrap_or(default.admin),
        metrics: proxy.stats_port.unwrap_or(default.metrics),
        ..default
    }
}

fn read_dns_port(r: &mut Reader<'_>, proxy: &ProxyConfig) -> Option<u16> {
    let text = proxy.setting(r, "ISTIO_META_DNS_PROXY_ADDR")?;
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    if port.is_none() {
        r.fail(format!(
            "ISTIO_META_DNS_PROXY_ADDR={text:?} is not localhost:<port>, for example localhost:15053"
        ));
    }
    port
}

/// Name servers of the agent's own `/etc/resolv.conf`; 127.0.0.1:53 if it names none, as resolv.conf(5) defines.
pub(super) fn read_resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let found = name_servers(&text);
    if found.is_empty() { vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53)] } else { found }
}

pub(super) fn name_servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim().parse().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).collect()
}
