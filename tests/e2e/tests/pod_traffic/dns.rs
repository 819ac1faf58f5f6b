//! DNS queries for names outside the mesh.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::two_nodes::{TwoNodes, VIP};
use isthmus_node::rules::{self, AGENT_MARK, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::nft::{self, Family};
use isthmus_sys::socket::{Sockets, Transparent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{SOON, ask_udp, query, serve, udp_towards};

/// A DNS server over both transports, whose answers are the query as a response, the server's name, and the client's
/// address.
fn server(sockets: &Sockets, at: SocketAddr, name: &'static str, tasks: &Tasks) -> Result<()> {
    let udp = sockets.udp(at)?;
    tasks.spawn("dns server udp", async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let _ = udp.send_to(&answer(&buffer[..length], name, from), from).await;
        }
    });
    let (tcp, _) = sockets.listen(at, Transparent::Never)?;
    let connections = Tasks::new(name);
    tasks.spawn("dns server tcp", async move {
        while let Ok((mut stream, from)) = tcp.accept().await {
            connections.spawn("dns connection", async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut message = vec![0; length.into()];
                    if stream.read_exact(&mut message).await.is_err() {
                        return;
                    }
                    let answer = answer(&message, name, from);
                    let framed =
                        [&u16::try_from(answer.len()).unwrap_or(0).to_be_bytes(), &answer[..]].concat();
                    if stream.write_all(&framed).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(())
}

fn answer(message: &[u8], name: &str, from: SocketAddr) -> Vec<u8> {
    let mut answer = message.to_vec();
    if let Some(flags) = answer.get_mut(2) {
        *flags |= 0x80;
    }
    answer.extend(format!(" {name} for {}", from.ip().to_canonical()).bytes());
    answer
}

async fn ask_tcp(from: &Sockets, server: SocketAddr, messages: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
    let mut stream = from.connect(server, None, SOON).await?;
    let talk = async {
        let mut answers = Vec::new();
        for message in messages {
            let length = u16::try_from(message.len())?;
            stream.write_all(&[&length.to_be_bytes(), &message[..]].concat()).await?;
            let mut answer = vec![0; stream.read_u16().await?.into()];
            stream.read_exact(&mut answer).await?;
            answers.push(answer);
        }
        Ok(answers)
    };
    tokio::time::timeout(SOON, talk).await.context("no answer")?
}

/// Messages that the mesh does not answer: an unknown name, an unsupported type, EDNS with a cookie, an UPDATE, and
/// garbage behind the header.
fn foreign() -> Vec<Vec<u8>> {
    let mut edns = query("www.example.com", 28);
    edns[11] = 1;
    edns.extend([0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let mut update = query("example.com", 6);
    update[2] = 0x28;
    let rubbish = [&query("x", 1)[..12], &[0xff; 9]].concat();
    vec![
        query("www.example.com", 1),
        query("echo.ns.svc.cluster.local", 16),
        query("example.com", 65_280),
        edns,
        rubbish,
        update,
    ]
}

pub(crate) fn a_query_reaches_the_server_it_was_sent_to() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let hosts = [("A", lab.lan.host()?), ("B", lab.lan.host()?)];
        let mut servers: Vec<(&'static str, SocketAddr, String)> = Vec::new();
        for (name, host) in &hosts {
            for (at, pod) in [
                (SocketAddr::new(host.v4.into(), 53), lab.client.v4.to_string()),
                (SocketAddr::new(host.v6.into(), 53), lab.client.v6.to_string()),
            ] {
                server(&host.sockets(), at, name, &lab.tasks)?;
                servers.push((name, at, pod));
            }
        }
        let (agent, _zds) = serve(&lab, 0, &lab.client, "client", &lab.local("")).await?;
        let app = lab.client.sockets();
        for (name, at, pod) in &servers {
            let said = format!(" {name} for {pod}");
            let expected = |query: &Vec<u8>| {
                let mut answer = query.clone();
                answer[2] |= 0x80;
                [&answer[..], said.as_bytes()].concat()
            };
            for query in foreign() {
                let got = ask_udp(&app, *at, &query).await?;
                ensure!(got == expected(&query), "UDP to {at}: {}", String::from_utf8_lossy(&got));
            }
            let got = ask_tcp(&app, *at, &foreign()).await?;
            ensure!(got == foreign().iter().map(expected).collect::<Vec<_>>(), "TCP to {at}: {got:?}");
            // Names of the mesh are answered by the agent, whichever server is asked.
            let ours = query("echo.ns.svc.cluster.local", 1);
            let got = ask_udp(&app, *at, &ours).await?;
            ensure!(got.ends_with(&[10, 96, 0, 1]) && VIP.ip().to_string() == "10.96.0.1", "{got:?}");
        }
        one_socket_asks_both(&app, &servers).await?;
        // A query to an unreachable server is not sent to another one.
        let unreachable = SocketAddr::new(lab.outsider.v4.into(), 53);
        let got = ask_udp(&app, unreachable, &query("www.example.com", 1)).await?;
        ensure!(got[3] & 0x0f == 2, "not a failure: {got:?}");
        agent.stop()?;
        Ok(())
    })
}

/// As some resolvers do: the same question to every server from the same port; the first answer counts.
async fn one_socket_asks_both(app: &Sockets, servers: &[(&'static str, SocketAddr, String)]) -> Result<()> {
    for v4 in [true, false] {
        let servers: Vec<_> = servers.iter().filter(|(_, at, _)| at.is_ipv4() == v4).collect();
        let socket = udp_towards(app, servers[0].1)?;
        for (_, at, _) in &servers {
            socket.send_to(&query("www.example.com", 1), at).await?;
        }
        let (mut buffer, mut heard) = ([0; 512], Vec::new());
        for _ in &servers {
            let answer = tokio::time::timeout(SOON, socket.recv_from(&mut buffer)).await;
            let (length, from) = answer.context("no answer")??;
            let who = servers.iter().find(|(_, at, _)| *at == from).context("another address answered")?;
            let said = format!(" {} for {}", who.0, who.2);
            ensure!(buffer[..length].ends_with(said.as_bytes()), "{from} said what another one did");
            heard.push(from);
        }
        heard.dedup();
        ensure!(heard.len() == servers.len(), "{heard:?}");
    }
    Ok(())
}

/// An application's query and one of the agent's may come from the same port and go to the same server. They are kept
/// apart by conntrack's zones: without them the agent's would be taken for the application's, and sent back to it.
pub(crate) fn the_agents_own_queries_do_not_mix_with_the_applications() -> Result<()> {
    lab::block_on(async {
        let lan = lab::Lan::new()?;
        let (pod, host) = (lan.host()?, lan.host()?);
        rules::apply_pod(&pod.netns, &PodRules::default())?;
        let app = pod.sockets().with_reuse_port(true);
        let agent = app.clone().with_mark(Some(AGENT_MARK));
        let cases = [
            (SocketAddr::new(host.v4.into(), 53), SocketAddr::new(pod.v4.into(), 40_001), "127.0.0.1:15053"),
            (SocketAddr::new(host.v6.into(), 53), SocketAddr::new(pod.v6.into(), 40_001), "[::1]:15053"),
        ];
        for (zones, port) in [(true, 0), (false, 1)] {
            if !zones {
                nft::remove(&pod.netns, &[(Family::Inet, "istio-ambient-raw".to_owned())])?;
            }
            for (at, mut from, proxy) in cases {
                from.set_port(from.port() + port);
                let proxy = agent.udp(proxy.parse()?)?;
                let server = host.sockets().udp(at)?;
                let mut buffer = [0; 64];
                let theirs = app.udp(from)?;
                theirs.send_to(b"the application's", at).await?;
                let (length, _) = tokio::time::timeout(SOON, proxy.recv_from(&mut buffer)).await??;
                ensure!(&buffer[..length] == b"the application's");
                // The conntrack entry outlives the socket.
                drop(theirs);
                let ours = agent.udp(from)?;
                ours.send_to(b"the agent's", at).await?;
                let expected = if zones { &server } else { &proxy };
                let arrived = tokio::time::timeout(SOON, expected.recv_from(&mut buffer)).await;
                let (length, asker) = arrived.with_context(|| format!("zones {zones}: it is lost"))??;
                ensure!(&buffer[..length] == b"the agent's", "zones {zones}");
                if zones {
                    ensure!(asker == from, "{asker}");
                    server.send_to(b"an answer", asker).await?;
                    let (length, by) = tokio::time::timeout(SOON, ours.recv_from(&mut buffer)).await??;
                    ensure!((&buffer[..length], by) == (b"an answer".as_slice(), at), "{by}");
                }
            }
        }
        Ok(())
    })
}
