//! Addresses: which service or pod one means, and whose it is.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::two_nodes::TwoNodes;
use isthmus_sys::route;

use super::*;

/// A service of a whole range for a database, and pods inside of the range.
pub(crate) fn c02_an_exact_address_beats_a_range() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (pod, database) = (lab.server.v4, lab.outsider.v4);
        for (host, port, name) in [(&lab.server, 5000, "pod"), (&lab.outsider, 5432, "database")] {
            says(&host.sockets(), SocketAddr::new(host.v4.into(), port), name, &lab.tasks)?;
        }
        let [a, b, ..] = pod.octets();
        let range = service(
            "range",
            &format!("vips: [], cidrVips: [{{network: net1, cidr: {a}.{b}.0.0/16}}]"),
            "5432: 5432",
        );
        let endpoint = endpoint("db", &format!("workloadIps: [{database}]"), "range", "5432: 5432");
        let local = mesh(&lab, &endpoint, &range);
        let in_range = SocketAddr::from(([a, b, 99, 99], 5432));
        // Control: outside of the mesh the pod is itself, and the other address nothing.
        ensure!(asked(&lab.outsider, (pod, 5000).into()).await?.starts_with("pod to"));
        ensure!(asked(&lab.outsider, in_range).await.is_err());
        let (client, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        ensure!(asked(&lab.client, (pod, 5000).into()).await?.starts_with("pod to"));
        ensure!(asked(&lab.client, in_range).await?.starts_with("database to"));
        has_line(&client.stop()?, &["dst.workload=\"server\"", "dst.hbone_addr="])?;
        has_line(&server.stop()?, &["src.identity=\"spiffe://cluster.local/ns/ns/sa/client\""])
    })
}

pub(crate) fn c03_services_of_one_address_divide_its_ports() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let backend = lab.outsider.v4;
        let (mut workloads, mut services) = (String::new(), String::new());
        for (name, port) in [("one", 7001), ("two", 7002)] {
            let at = SocketAddr::new(backend.into(), port);
            says(&lab.outsider.sockets(), at, name, &lab.tasks)?;
            // Control: outside of the mesh, where there are two addresses.
            ensure!(asked(&lab.client, at).await?.starts_with(name));
            let ports = format!("{port}: {port}");
            workloads += &endpoint(name, &format!("workloadIps: [{backend}]"), name, &ports);
            services += &service(name, "vips: [net1/198.51.100.1]", &ports);
        }
        let (agent, _zds) = serve(&lab, 0, &lab.client, "client", &mesh(&lab, &workloads, &services)).await?;
        for (name, port) in [("one", 7001), ("two", 7002)] {
            let said = asked(&lab.client, ([198, 51, 100, 1], port).into()).await?;
            ensure!(said.starts_with(name), "{port}: {said}");
        }
        agent.stop()?;
        Ok(())
    })
}

/// An address that a pod has besides those that Kubernetes knows.
fn more(host: &Host, last: u8) -> Result<IpAddr> {
    let [a, b, c, _] = host.v4.octets();
    let address = IpAddr::from([a, b, c, last]);
    route::add_address(&host.netns, "eth0", format!("{address}/32").parse()?)?;
    Ok(address)
}

pub(crate) fn c05_an_address_that_nobody_lists_is_served() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let there = SocketAddr::new(more(&lab.server, 200)?, APP);
        says(&lab.server.sockets(), there, "pod", &lab.tasks)?;
        let expected = format!("pod to {}", lab.outsider.v4);
        // Control: outside of the mesh.
        ensure!(asked(&lab.outsider, there).await? == expected);
        let (agent, _zds) = serve(&lab, 1, &lab.server, "server", &lab.local("")).await?;
        ensure!(asked(&lab.outsider, there).await? == expected);
        has_line(&agent.stop()?, &["direction=\"inbound\""])
    })
}

pub(crate) fn c06_the_source_that_the_application_bound_is_kept() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (second, to) = (more(&lab.client, 201)?, SocketAddr::new(lab.outsider.v4.into(), APP));
        says(&lab.outsider.sockets(), to, "outsider", &lab.tasks)?;
        let call = async || {
            let stream = lab.client.sockets().connect_from_local(to, second, SOON).await?;
            Ok::<_, anyhow::Error>(String::from_utf8(lab::exchange(stream, b"").await?)?)
        };
        // Control: outside of the mesh.
        ensure!(call().await? == format!("outsider to {second}"));
        let (agent, _zds) = serve(&lab, 0, &lab.client, "client", &lab.local("")).await?;
        ensure!(call().await? == format!("outsider to {second}"));
        ensure!(asked(&lab.client, to).await? == format!("outsider to {}", lab.client.v4));
        has_line(&agent.stop()?, &["direction=\"outbound\""])
    })
}
