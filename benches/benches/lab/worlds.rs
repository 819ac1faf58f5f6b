//! Two nodes with the agents of one subject, and the servers of the load. It must not know what is measured.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use isthmus_benches::agents::{self, Agents, Road, Subject};
use isthmus_benches::{double, new_connections};
use isthmus_kit::lab::Host;
use isthmus_kit::two_nodes::{TwoNodes, VIP};
use isthmus_sys::sysctl;

use crate::server::{self, Received, Stop};

const CONGESTION: &str = "net/ipv4/tcp_congestion_control";

/// One subject, ready for load.
pub(crate) struct World {
    pub(crate) name: &'static str,
    pub(crate) lab: TwoNodes,
    pub(crate) agents: Option<Agents>,
    /// Server of new connections.
    pub(crate) bytes: SocketAddr,
    /// Server of bulk and round trips.
    pub(crate) blocking: SocketAddr,
    /// Server of small requests on many connections.
    pub(crate) small: SocketAddr,
    /// Bytes that [`World::blocking`] received as a sink.
    pub(crate) received: Received,
    /// Ends its sources.
    pub(crate) stop: Stop,
}

impl World {
    /// Starts servers and agents.
    pub(crate) fn start(subject: &Subject, road: Road, congestion: Option<&str>) -> Result<Self> {
        let lab = TwoNodes::new()?;
        agents::prepare(&lab)?;
        for host in hosts(&lab) {
            if let Some(congestion) = congestion {
                sysctl::write(&host.netns, CONGESTION, congestion)
                    .context("the system's net.ipv4.tcp_allowed_congestion_control must contain it")?;
            }
        }
        let (received, stop) = (Received::default(), Stop::default());
        let [bytes, blocking, small] = double::PORTS;
        let mut servers = [
            new_connections::serve(&lab.server, bytes)?,
            server::blocking(&lab.server, blocking, &received, &stop)?,
            server::small(&lab.server, small)?,
        ];
        let agents = subject.start(&lab, road)?;
        if agents.is_some() && road == Road::DoubleHbone {
            // A pod of another network is reached through its service.
            servers.iter_mut().for_each(|server| server.set_ip(VIP.ip()));
        }
        let [bytes, blocking, small] = servers;
        Ok(Self { name: subject.name, lab, agents, bytes, blocking, small, received, stop })
    }

    /// The congestion control of all namespaces.
    pub(crate) fn congestion(&self) -> Result<String> {
        let mut all = hosts(&self.lab)
            .into_iter()
            .map(|host| sysctl::read(&host.netns, CONGESTION))
            .collect::<Result<Vec<_>, _>>()?;
        all.dedup();
        ensure!(all.len() == 1, "namespaces with different congestion control: {all:?}");
        all.pop().context("no namespace")
    }
}

/// Pods, nodes and the gateway's host.
fn hosts(lab: &TwoNodes) -> [&Host; 5] {
    [&lab.client, &lab.server, &lab.nodes[0], &lab.nodes[1], &lab.outsider]
}
