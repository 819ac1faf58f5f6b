//! Connections of the agent that have the addresses and ports of others: they are kept apart, and what answers them finds
//! back to the agent.

use std::os::fd::AsFd as _;

use isthmus_model::LOCAL_MARK;
use isthmus_sys::nft::{
    Base, Chain, ChainKind, Hook, Match, Op, Policy, Proto, Rule, Side, Statement, Table,
};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpSocket;

use super::*;

/// The port of the application.
const APP: u16 = 8080;

/// The agent's connection to the application from this very address and port.
async fn borrow(lab: &PacketLab, from: SocketAddr, to: SocketAddr, mark: u32) -> anyhow::Result<TcpStream> {
    let socket = lab.pod.netns.run(|| match from {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    })??;
    setsockopt(&socket.as_fd(), sockopt::Mark, &mark)?;
    // Of both families.
    setsockopt(&socket.as_fd(), sockopt::IpTransparent, &true)?;
    socket.set_reuseaddr(true)?;
    socket.bind(from)?;
    Ok(tokio::time::timeout(NEVER, socket.connect(to)).await??)
}

/// The client's connection, as the agent has accepted it, and the agent's with the same address and port to the
/// application. Both must carry data, and go on to do so.
async fn both_work(lab: &PacketLab, to: SocketAddr, port: u16, mark: u32) -> anyhow::Result<()> {
    let plaintext = listener(&lab.agent(), 15006)?;
    let client = SocketAddr::new(if to.is_ipv4() { lab.peer.v4.into() } else { lab.peer.v6.into() }, port);
    let dial = async {
        let socket = lab.peer.netns.run(|| match to {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        })??;
        socket.bind(client)?;
        Ok::<_, anyhow::Error>(tokio::time::timeout(SOON, socket.connect(to)).await??)
    };
    let accept = async { Ok(tokio::time::timeout(SOON, plaintext.accept()).await??) };
    let (dialled, (accepted, caller)) = tokio::try_join!(dial, accept)?;
    ensure!(canonical(caller) == client, "{caller}");
    let borrowed = borrow(lab, client, to, mark).await.context("no connection to the application")?;
    ensure!(canonical(borrowed.local_addr()?) == client);
    tokio::time::timeout(SOON, talk(dialled, accepted)).await.context("the client's has died")??;
    ensure!(lab::exchange(borrowed, b"ping").await? == b"ping");
    Ok(())
}

pub(crate) fn the_agents_connections_do_not_meet_the_clients() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let tasks = Tasks::new("test");
        lab::echo(&lab.app(), (Ipv6Addr::UNSPECIFIED, APP).into(), &tasks)?;
        for to in lab.pod_at(APP) {
            both_work(&lab, to, 62_000, AGENT_MARK | LOCAL_MARK).await?;
            // Control: an agent that does not tell its connections to applications.
            ensure!(both_work(&lab, to, 62_001, AGENT_MARK).await.is_err(), "no zone is needed");
        }
        Ok(())
    })
}

/// A guest behind a bridge in the pod, to which the pod translates its own address: KubeVirt's masquerade, a published port
/// of a container engine.
fn guest(lab: &PacketLab) -> anyhow::Result<Host> {
    let netns = std::sync::Arc::new(Netns::create()?);
    let (v4, v6): (Ipv4Addr, Ipv6Addr) = ("10.88.0.2".parse()?, "fd88::2".parse()?);
    let pod = &lab.pod.netns;
    route::add_bridge(pod, "br1")?;
    lab::veth((pod, "vm0", &[]), (&netns, "eth0", &[]))?;
    route::set_master(pod, "vm0", "br1")?;
    for address in ["10.88.0.1/24", "fd88::1/64"] {
        route::add_address(pod, "br1", address.parse()?)?;
    }
    for (address, any, gateway) in
        [("10.88.0.2/24", "0.0.0.0/0", "10.88.0.1"), ("fd88::2/64", "::/0", "fd88::1")]
    {
        route::add_address(&netns, "eth0", address.parse()?)?;
        route::add_route(&netns, any.parse()?, Some(gateway.parse()?), None)?;
    }
    let translate = |at: IpAddr, to: IpAddr| {
        let at = Statement::Address(Side::Destination, Op::Eq, Match::Net(at.into()));
        Rule::new([at, Statement::Port(Proto::Tcp, Side::Destination, Op::Eq, APP), Statement::Dnat(to)])
    };
    let chain = |name: &str, hook| Chain {
        name: name.to_owned(),
        base: Some(Base { kind: ChainKind::Nat, hook, priority: -100, policy: Policy::Accept }),
        rules: vec![translate(lab.pod.v4.into(), v4.into()), translate(lab.pod.v6.into(), v6.into())],
    };
    let chains = vec![chain("prerouting", Hook::Prerouting), chain("output", Hook::Output)];
    let table = Table { family: Family::Inet, name: "guest".to_owned(), sets: vec![], chains };
    nft::apply(pod, &Ruleset { tables: vec![table] })?;
    for file in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        sysctl::write(pod, file, "1")?;
    }
    Ok(Host { netns, v4, v6 })
}

pub(crate) fn a_guest_behind_a_bridge_answers_the_agent() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::new()?;
        let (guest, tasks) = (guest(&lab)?, Tasks::new("test"));
        lab::echo(&guest.sockets(), (Ipv6Addr::UNSPECIFIED, APP).into(), &tasks)?;
        let clients = [IpAddr::from(lab.peer.v4), lab.peer.v6.into()];
        for to in lab.pod_at(APP) {
            // Control: outside of the mesh.
            let stream = lab.peer.sockets().connect(to, None, SOON).await.context("no neighbour yet")?;
            ensure!(lab::exchange(stream, b"ping").await? == b"ping");
        }
        for closing in [true, false] {
            rules::apply_pod(&lab.pod.netns, &PodRules { closing, canary: true, ..PodRules::default() })?;
            for mark in [AGENT_MARK, AGENT_MARK | LOCAL_MARK] {
                let agent = lab.pod.sockets().with_mark(Some(mark));
                for (to, client) in lab.pod_at(APP).into_iter().zip(clients) {
                    let stream = agent.connect(to, Some(client), SOON).await;
                    let stream = stream.with_context(|| format!("{to} from {client}, mark {mark:#x}"))?;
                    ensure!(canonical(stream.local_addr()?).ip() == client);
                    ensure!(lab::exchange(stream, b"ping").await? == b"ping");
                }
            }
        }
        Ok(())
    })
}

/// Clients that ask from port 53, as resolvers of old do: what the proxy answers is no query of the agent's.
pub(crate) fn a_query_from_port_53_is_answered() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::new()?;
        for to in lab.peer_at(53) {
            // Control: outside of the mesh.
            from_port_53(&lab, to, &lab.peer.sockets().udp(to)?).await?;
        }
        rules::apply_pod(&lab.pod.netns, &PodRules::default())?;
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        for (local, to) in loopback.into_iter().zip(lab.peer_at(53)) {
            from_port_53(&lab, to, &lab.agent().udp((local, 15053).into())?).await?;
        }
        Ok(())
    })
}

async fn from_port_53(lab: &PacketLab, to: SocketAddr, at: &UdpSocket) -> anyhow::Result<()> {
    let from: IpAddr = if to.is_ipv4() { lab.pod.v4.into() } else { lab.pod.v6.into() };
    let query = lab.app().udp((from, 53).into())?;
    query.connect(to).await?;
    query.send(b"query").await?;
    let talk = async {
        let mut buffer = [0; 16];
        let (_, asker) = at.recv_from(&mut buffer).await?;
        ensure!(asker == SocketAddr::new(from, 53), "{asker}");
        at.send_to(b"answer", asker).await?;
        let len = query.recv(&mut buffer).await?;
        ensure!(&buffer[..len] == b"answer");
        Ok(())
    };
    tokio::time::timeout(SOON, talk).await.with_context(|| format!("no answer from {to}"))?
}
