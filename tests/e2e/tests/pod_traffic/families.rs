//! Pods that have one family of addresses, or both, through two agents and their rules.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::{self, Host, Lan};
use isthmus_kit::probe;
use isthmus_kit::two_nodes::TwoNodes;
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::{Sockets, Transparent, canonical};
use isthmus_sys::{IpNet, route, sysctl};
use tokio::io::AsyncWriteExt as _;

use super::{ask_udp, query, serve};

const SECRET: &str = "what the application says in plain words to ";
const VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 7)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 7))];

/// Which families a pod has.
#[derive(Clone, Copy)]
struct Has {
    v4: bool,
    v6: bool,
}

pub(crate) fn a_pod_without_ipv6_is_carried() -> Result<()> {
    is_carried(Has { v4: true, v6: false })
}

pub(crate) fn a_pod_without_ipv4_is_carried() -> Result<()> {
    is_carried(Has { v4: false, v6: true })
}

pub(crate) fn a_pod_with_both_is_carried_over_both() -> Result<()> {
    is_carried(Has { v4: true, v6: true })
}

/// A service has addresses of both families, its pod of one: connections to the other family arrive all the same.
pub(crate) fn a_service_address_of_one_family_reaches_a_pod_of_the_other() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (both, only_v6) = (Has { v4: true, v6: true }, Has { v4: false, v6: true });
        let (client, server) = (host(&lab.lan, 101, both)?, host(&lab.lan, 102, only_v6)?);
        let to = SocketAddr::new(server.v6.into(), 8080);
        whoami(&server.sockets(), to, &lab.tasks)?;
        let local = local(&addresses(&client, both), &addresses(&server, only_v6));
        let (client_agent, _zds0) = serve(&lab, 0, &client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &server, "server", &local).await?;
        for vip in VIPS {
            let got = lab.exchange(&client, SocketAddr::new(vip, 80), b"").await;
            let got = got.with_context(|| format!("{vip} does not answer"))?;
            // Between the pods only this family is used.
            ensure!(String::from_utf8_lossy(&got) == format!("{SECRET}{}", client.v6), "{vip}: {got:?}");
        }
        client_agent.stop()?;
        server_agent.stop()?;
        Ok(())
    })
}

/// A host on the wire with these families. Without IPv6 the kernel offers none there, loopback included.
fn host(lan: &Lan, number: u8, has: Has) -> Result<Host> {
    let (v4, v6) =
        (Ipv4Addr::new(10, 77, 1, number), Ipv6Addr::new(0xfd00, 0x77, 1, 0, 0, 0, 0, number.into()));
    let netns = Arc::new(Netns::create()?);
    if !has.v6 {
        for interface in ["all", "default", "lo"] {
            sysctl::write(&netns, &format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
        }
    }
    let port = format!("veth{number}");
    route::add_veth(&lan.node, &port, &netns, "eth0")?;
    route::set_master(&lan.node, &port, "br0")?;
    route::set_up(&lan.node, &port)?;
    route::set_up(&netns, "eth0")?;
    for (there, address, prefix, gateway) in [
        (has.v4, IpAddr::from(v4), 24, IpAddr::from(lan.v4)),
        (has.v6, IpAddr::from(v6), 64, IpAddr::from(lan.v6)),
    ] {
        if there {
            route::add_address(&netns, "eth0", IpNet::new(address, prefix)?)?;
            let any = if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            route::add_route(&netns, any.parse()?, Some(gateway), Some("eth0"))?;
        }
    }
    Ok(Host { netns, v4, v6 })
}

fn addresses(host: &Host, has: Has) -> Vec<IpAddr> {
    let both = [(has.v4, IpAddr::from(host.v4)), (has.v6, IpAddr::from(host.v6))];
    both.into_iter().filter_map(|(there, address)| there.then_some(address)).collect()
}

fn local(client: &[IpAddr], server: &[IpAddr]) -> String {
    let list = |addresses: &[IpAddr]| {
        addresses.iter().map(|address| format!("'{address}'")).collect::<Vec<_>>().join(", ")
    };
    let pod = |name: &str, addresses: &[IpAddr], node: &str, services: &str| {
        format!(
            "- {{uid: c1//Pod/ns/{name}, name: {name}, namespace: ns, serviceAccount: {name}, network: net1, \
             clusterId: c1, workloadIps: [{}], protocol: HBONE, node: {node}, services: {services}}}\n",
            list(addresses)
        )
    };
    format!(
        "workloads:\n{}{}services:\n- {{name: echo, namespace: ns, hostname: echo.ns.svc.cluster.local, \
         vips: ['net1/{}', 'net1/{}'], ports: {{80: 8080}}}}\n",
        pod("client", client, "n0", "{}"),
        pod("server", server, "n1", "{ns/echo.ns.svc.cluster.local: {80: 8080}}"),
        VIPS[0],
        VIPS[1],
    )
}

/// An application that sends each client its own source address.
fn whoami(sockets: &Sockets, at: SocketAddr, tasks: &Tasks) -> Result<()> {
    let (listener, _) = sockets.listen(at, Transparent::Never)?;
    tasks.spawn("application", async move {
        while let Ok((mut stream, from)) = listener.accept().await {
            let _ = stream.write_all(format!("{SECRET}{}", canonical(from).ip()).as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    Ok(())
}

fn is_carried(has: Has) -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (client, server) = (host(&lab.lan, 101, has)?, host(&lab.lan, 102, has)?);
        let (from, to) = (addresses(&client, has), addresses(&server, has));
        for address in &to {
            whoami(&server.sockets(), SocketAddr::new(*address, 8080), &lab.tasks)?;
        }
        let local = local(&from, &to);
        let (client_agent, _zds0) = serve(&lab, 0, &client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &server, "server", &local).await?;
        let wire = Capture::open(&server.netns, "eth0")?;
        for (from, to) in from.iter().zip(&to) {
            let vip = VIPS[usize::from(to.is_ipv6())];
            for asked in [SocketAddr::new(vip, 80), SocketAddr::new(*to, 8080)] {
                let got = lab.exchange(&client, asked, b"").await;
                let got = got.with_context(|| format!("{asked} does not answer"))?;
                // The application sees the client's own address, of the family that was asked for.
                let said = String::from_utf8_lossy(&got);
                ensure!(said == format!("{SECRET}{from}"), "{asked} said {said:?}");
            }
        }
        let frames = wire.drain();
        ensure!(!probe::contains(&frames, SECRET.as_bytes()), "the payload was seen in plaintext");
        ensure!(probe::syns(&frames, 8080) == 0 && probe::syns(&frames, 15008) > 0);
        for (outside, to) in
            [IpAddr::from(lab.outsider.v4), lab.outsider.v6.into()].into_iter().flat_map(|outside| {
                let same = to.iter().filter(move |to| to.is_ipv4() == outside.is_ipv4());
                same.map(move |to| (outside, *to))
            })
        {
            let got = lab.exchange(&lab.outsider, SocketAddr::new(to, 8080), b"").await?;
            ensure!(
                String::from_utf8_lossy(&got) == format!("{SECRET}{outside}"),
                "plaintext to {to}: {got:?}"
            );
            // A query of this family is redirected and answered, with addresses of either.
            let server = SocketAddr::new(outside, 53);
            for (kind, vip) in [(1, VIPS[0]), (28, VIPS[1])] {
                let got =
                    ask_udp(&client.sockets(), server, &query("echo.ns.svc.cluster.local", kind)).await?;
                let address = match vip {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                };
                ensure!(got.ends_with(&address), "{kind} from {server}: {got:?}");
            }
        }
        client_agent.stop()?;
        server_agent.stop()?;
        Ok(())
    })
}
