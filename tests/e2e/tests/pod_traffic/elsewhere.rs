//! Unreachable endpoints, with real agents: the connection is made to another one, and the access log names each attempt.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::two_nodes::{TwoNodes, VIP};

use super::serve;

const WORDS: &[u8] = b"for any endpoint";

/// One of three endpoints is reachable. The two others weigh so much that every connection tries one of them first,
/// until it is ejected; at most one of three is ejected, so that the other is tried again.
pub(crate) fn a_connection_is_retried_at_a_reachable_endpoint() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        // A host without a listener, and an address without a host.
        let [a, b, c, _] = lab.outsider.v4.octets();
        let absent = IpAddr::from([a, b, c, 250]);
        let endpoint = |name: &str, ip: IpAddr| {
            format!(
                "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, \
                 clusterId: c1, workloadIps: [{ip}], protocol: HBONE, node: n2, capacity: 1000000000, \
                 services: {{ns/echo.ns.svc.cluster.local: {{80: 8080}}}}}}\n"
            )
        };
        let more = [endpoint("deaf", lab.outsider.v4.into()), endpoint("gone", absent)].concat();
        let local = lab.local("").replacen("services:\n-", &format!("{more}services:\n-"), 1);
        let (client_agent, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        const CONNECTIONS: usize = 12;
        for turn in 0..CONNECTIONS {
            ensure!(lab.exchange(&lab.client, VIP, WORDS).await? == WORDS, "connection {turn}");
        }
        server_agent.stop()?;
        let log = client_agent.stop()?;
        let lines: Vec<_> = log.lines().filter(|line| line.contains("connection complete")).collect();
        ensure!(lines.len() == CONNECTIONS, "not one line for each connection:\n{log}");
        for line in &lines {
            ensure!(line.contains("dst.workload=\"server\"") && !line.contains("error="), "{line}");
        }
        let tried = |what: &str| lines.iter().any(|line| line.contains(" tried=\"") && line.contains(what));
        ensure!(lines[0].contains(" tries="), "the first one cannot have known: {}", lines[0]);
        ensure!(tried(&format!("{}:15008 refused, endpoint c1//Pod/ns/deaf", lab.outsider.v4)), "{log}");
        ensure!(tried(&format!("{absent}:15008 unreachable, endpoint c1//Pod/ns/gone")), "{log}");
        ensure!(tried("ejected for 1s") && tried("not ejected: half of 3 at most"), "{log}");
        Ok(())
    })
}
