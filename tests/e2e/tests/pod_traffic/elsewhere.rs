//! Endpoints that are not there: with real agents, a connection is made at another one, and the log says so.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::two_nodes::{VIP, World};

use super::serve;

const WORDS: &[u8] = b"for whoever is there";

/// Of three endpoints one is there. The two others weigh so much that every connection meets one of them first, until
/// it is left out; not more than one of three is left out, so that the other one is met again.
pub(crate) fn a_connection_is_made_at_an_endpoint_that_is_there() -> Result<()> {
    let world = World::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(world.server.v4.into(), 8080);
        lab::echo(&world.server.sockets(), app, &world.tasks)?;
        // A host where nobody listens, and an address that no host has.
        let [a, b, c, _] = world.outsider.v4.octets();
        let nobody = IpAddr::from([a, b, c, 250]);
        let endpoint = |name: &str, ip: IpAddr| {
            format!(
                "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, \
                 clusterId: c1, workloadIps: [{ip}], protocol: HBONE, node: n2, capacity: 1000000000, \
                 services: {{ns/echo.ns.svc.cluster.local: {{80: 8080}}}}}}\n"
            )
        };
        let more = [endpoint("deaf", world.outsider.v4.into()), endpoint("gone", nobody)].concat();
        let local = world.local("").replacen("services:\n-", &format!("{more}services:\n-"), 1);
        let (client_agent, _zds0) = serve(&world, 0, &world.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&world, 1, &world.server, "server", &local).await?;
        const CONNECTIONS: usize = 12;
        for turn in 0..CONNECTIONS {
            ensure!(world.exchange(&world.client, VIP, WORDS).await? == WORDS, "connection {turn}");
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
        ensure!(tried(&format!("{}:15008 refused, endpoint c1//Pod/ns/deaf", world.outsider.v4)), "{log}");
        ensure!(tried(&format!("{nobody}:15008 unreachable, endpoint c1//Pod/ns/gone")), "{log}");
        ensure!(tried("ejected for 1s") && tried("not ejected: half of 3 at most"), "{log}");
        Ok(())
    })
}
