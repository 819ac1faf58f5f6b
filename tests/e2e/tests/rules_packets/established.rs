//! Connections that are open when a pod enters or leaves the mesh.

use isthmus_node::rules::{EARLIER_MARK, MARK_MASK};
use isthmus_sys::conntrack;
use isthmus_sys::sock_diag::Connection;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// The port of the servers.
const SERVER: u16 = 8080;

/// Sends bytes and reads their echo.
async fn echoes(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(b"still here").await?;
    let mut back = [0; 10];
    tokio::time::timeout(SOON, stream.read_exact(&mut back)).await.context("no echo")??;
    ensure!(&back == b"still here");
    Ok(())
}

/// Connections in both directions and families that have carried data, and some that have not.
async fn open(lab: &PacketLab, tasks: &Tasks) -> anyhow::Result<Vec<TcpStream>> {
    let any = (Ipv6Addr::UNSPECIFIED, SERVER).into();
    lab::echo(&lab.peer.sockets(), any, tasks)?;
    lab::echo(&lab.app(), any, tasks)?;
    let mut open = Vec::new();
    for (from, to) in lab
        .peer_at(SERVER)
        .map(|to| (lab.app(), to))
        .into_iter()
        .chain(lab.pod_at(SERVER).map(|to| (lab.peer.sockets(), to)))
    {
        for idle in [false, true] {
            let mut stream = from.connect(to, None, SOON).await?;
            if !idle {
                echoes(&mut stream).await?;
            }
            open.push(stream);
        }
    }
    Ok(open)
}

fn rules(closing: bool) -> PodRules {
    PodRules { closing, canary: true, ..PodRules::default() }
}

pub(crate) fn connections_older_than_enrolment_go_on_and_new_ones_are_captured() -> anyhow::Result<()> {
    lab::block_on(async {
        let (lab, tasks) = (PacketLab::new()?, Tasks::new("test"));
        let mut streams = open(&lab, &tasks).await?;
        ensure!(rules::capture_running(&lab.pod.netns, &rules(true))? == streams.len());
        let (outbound, plaintext) = (listener(&lab.agent(), 15001)?, listener(&lab.agent(), 15006)?);
        // While the pod is closed, afterwards, and when its rules are written again.
        for closing in [None, Some(false), Some(true), Some(false)] {
            if let Some(closing) = closing {
                rules::apply_pod(&lab.pod.netns, &rules(closing))?;
            }
            for stream in &mut streams {
                let ends = format!("{:?}, closing {closing:?}", stream.peer_addr());
                echoes(stream).await.context(ends)?;
            }
            for to in lab.peer_at(SERVER) {
                arrives(&lab.app(), to, &outbound).await?;
            }
            for to in lab.pod_at(SERVER) {
                arrives(&lab.peer.sockets(), to, &plaintext).await?;
            }
        }
        // They end as they would have.
        for stream in streams {
            ensure!(lab::exchange(stream, b"the last").await? == b"the last");
        }
        Ok(())
    })
}

/// Control of the above, and the bound of it: what nothing shows to be older than enrolment has no way past the rules.
pub(crate) fn only_connections_older_than_enrolment_pass() -> anyhow::Result<()> {
    lab::block_on(async {
        let (lab, tasks) = (PacketLab::new()?, Tasks::new("test"));
        let mut streams = open(&lab, &tasks).await?;
        // Without evidence: the rules alone.
        rules::apply_pod(&lab.pod.netns, &rules(false))?;
        for stream in &mut streams {
            ensure!(echoes(stream).await.is_err(), "{:?} was not known and goes on", stream.peer_addr());
        }
        // Of a pod that is captured already, nothing counts as older.
        let outbound = listener(&lab.agent(), 15001)?;
        let [to, _] = lab.peer_at(SERVER);
        let connect = async { Ok::<_, anyhow::Error>(lab.app().connect(to, None, SOON).await?) };
        let (mut dialled, _accepted) = tokio::try_join!(connect, async { Ok(outbound.accept().await?) })?;
        ensure!(rules::capture_running(&lab.pod.netns, &rules(false))? == 0);
        // Nor does a redirected connection become one when conntrack loses it.
        let wire = Capture::open(&lab.peer.netns, "eth0")?;
        conntrack::forget(&lab.pod.netns, |_| true)?;
        dialled.write_all(b"plaintext of a captured pod").await?;
        tokio::time::sleep(NEVER).await;
        ensure!(!isthmus_kit::probe::contains(&wire.drain(), b"plaintext of"), "it left the pod");
        Ok(())
    })
}

/// An entry may outlive its connection. A new connection with the same ports must not pass with it.
pub(crate) fn no_new_connection_takes_the_place_of_an_older_one() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::new()?;
        rules::apply_pod(&lab.pod.netns, &rules(false))?;
        let (outbound, plaintext) = (listener(&lab.agent(), 15001)?, listener(&lab.agent(), 15006)?);
        let _service = listener(&lab.peer.sockets(), SERVER)?;
        let _app = listener(&lab.app(), SERVER)?;
        let (pod, peer) = (lab.pod.v4, lab.peer.v4);
        let entry = |local: SocketAddr, remote: SocketAddr, accepted| Connection {
            local,
            remote,
            accepted,
            unanswered: false,
            done: false,
            mark: None,
        };
        let stale = [
            entry((pod, 40_000).into(), (peer, SERVER).into(), false),
            entry((pod, SERVER).into(), (peer, 40_000).into(), true),
        ];
        ensure!(conntrack::track(&lab.pod.netns, &stale, EARLIER_MARK, MARK_MASK)? == 2);
        let wire = Capture::open(&lab.peer.netns, "eth0")?;
        for (from, at, to) in [(&lab.pod, pod, peer), (&lab.peer, peer, pod)] {
            let dial = async |port: u16| {
                let socket = from.netns.run(tokio::net::TcpSocket::new_v4)??;
                socket.bind((at, port).into())?;
                Ok::<_, anyhow::Error>(
                    tokio::time::timeout(NEVER, socket.connect((to, SERVER).into())).await??,
                )
            };
            ensure!(dial(40_000).await.is_err(), "from {at}: it passes with the older one");
            // Control: another port.
            dial(40_001).await.with_context(|| format!("from {at}"))?;
        }
        for captured in [outbound, plaintext] {
            tokio::time::timeout(SOON, captured.accept()).await.context("not captured")??;
        }
        ensure!(isthmus_kit::probe::syns_from(&wire.drain(), pod.into(), SERVER) == 0, "a SYN left the pod");
        Ok(())
    })
}

pub(crate) fn connections_that_the_agent_carries_outlive_the_redirection() -> anyhow::Result<()> {
    lab::block_on(async {
        let (lab, tasks) = (PacketLab::captured(&rules(false))?, Tasks::new("test"));
        let echo = |sockets: &Sockets, port| lab::echo(sockets, (Ipv6Addr::UNSPECIFIED, port).into(), &tasks);
        let agents = [15001, 15006].map(|port| echo(&lab.agent(), port));
        for agent in agents {
            agent?;
        }
        echo(&lab.app(), SERVER)?;
        let mut carried = Vec::new();
        for to in lab.peer_at(SERVER) {
            carried.push(lab.app().connect(to, None, SOON).await?);
        }
        for (to, client) in
            lab.pod_at(SERVER).into_iter().zip([IpAddr::from(lab.peer.v4), lab.peer.v6.into()])
        {
            carried.push(lab.peer.sockets().connect(to, None, SOON).await?);
            carried.push(lab.agent().connect(to, Some(client), SOON).await?);
        }
        rules::release_pod(&lab.pod.netns)?;
        for stream in &mut carried {
            echoes(stream).await.with_context(|| format!("{:?}", stream.peer_addr()))?;
        }
        ensure!(rules::carries(&lab.pod.netns)?);
        // What begins now goes its own way.
        let service = listener(&lab.peer.sockets(), SERVER)?;
        for to in lab.peer_at(SERVER) {
            arrives(&lab.app(), to, &service).await?;
        }
        for to in lab.pod_at(SERVER) {
            lab::exchange(lab.peer.sockets().connect(to, None, SOON).await?, b"ping").await?;
        }
        for stream in carried {
            ensure!(lab::exchange(stream, b"the last").await? == b"the last");
        }
        isthmus_kit::wait::until("the agent's connections have ended", async || {
            rules::carries(&lab.pod.netns).is_ok_and(|carries| !carries)
        })
        .await?;
        rules::remove_pod(&lab.pod.netns)?;
        ensure!(nft::dump(&lab.pod.netns)? == Ruleset::default());
        Ok(())
    })
}

/// A pod that leaves and comes back while the agent still carries connections of it.
pub(crate) fn a_pod_that_comes_back_keeps_what_it_has() -> anyhow::Result<()> {
    lab::block_on(async {
        let (lab, tasks) = (PacketLab::captured(&rules(false))?, Tasks::new("test"));
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        lab::echo(&lab.agent(), any(15001), &tasks)?;
        lab::echo(&lab.app(), any(SERVER), &tasks)?;
        lab::echo(&lab.peer.sockets(), any(SERVER), &tasks)?;
        let ([out, _], [at, _]) = (lab.peer_at(SERVER), lab.pod_at(SERVER));
        let mut streams = vec![
            lab.app().connect(out, None, SOON).await?,
            lab.agent().connect(at, Some(lab.peer.v4.into()), SOON).await?,
        ];
        rules::release_pod(&lab.pod.netns)?;
        // Opened outside of the mesh.
        streams.push(lab.app().connect(out, None, SOON).await?);
        streams.push(lab.peer.sockets().connect(at, None, SOON).await?);
        ensure!(rules::capture_running(&lab.pod.netns, &rules(true))? > 0);
        for closing in [true, false] {
            rules::apply_pod(&lab.pod.netns, &rules(closing))?;
            for stream in &mut streams {
                echoes(stream).await.with_context(|| format!("{:?}", stream.peer_addr()))?;
            }
        }
        Ok(())
    })
}

/// The queries of a socket follow its pod into the mesh and out of it.
pub(crate) fn queries_of_an_open_socket_follow_the_pod() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::new()?;
        let [to, _] = lab.peer_at(53);
        let (server, proxy) = (lab.peer.sockets().udp(to)?, lab.agent().udp("127.0.0.1:15053".parse()?)?);
        let socket = lab.app().udp((lab.pod.v4, 0).into())?;
        socket.connect(to).await?;
        let asks = async |at: &UdpSocket, what: &str| {
            socket.send(b"query").await?;
            let mut buffer = [0; 8];
            let arrived = tokio::time::timeout(SOON, at.recv_from(&mut buffer)).await;
            at.send_to(b"answer", arrived.with_context(|| what.to_owned())??.1).await?;
            let len = tokio::time::timeout(SOON, socket.recv(&mut buffer))
                .await
                .with_context(|| what.to_owned())??;
            ensure!(&buffer[..len] == b"answer");
            Ok::<_, anyhow::Error>(())
        };
        asks(&server, "before").await?;
        rules::capture_running(&lab.pod.netns, &rules(false))?;
        asks(&proxy, "enrolled").await?;
        rules::release_pod(&lab.pod.netns)?;
        asks(&server, "withdrawn").await?;
        rules::capture_running(&lab.pod.netns, &rules(false))?;
        asks(&proxy, "enrolled again").await
    })
}
