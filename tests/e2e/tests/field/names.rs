//! Names: what they resolve to, and by which server.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::TwoNodes;
use isthmus_rt::task::Tasks;
use nix::mount::{MsFlags, mount};

use super::*;

const A: u16 = 1;
const MX: u16 = 15;
/// Response codes.
const NO_ERROR: u8 = 0;
const NO_SUCH_NAME: u8 = 3;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// A query of one question.
fn query(name: &str, kind: u16) -> Vec<u8> {
    let mut message = vec![0xab, 0xcd, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        message.extend_from_slice(label.as_bytes());
    }
    message.push(0);
    message.extend([kind.to_be_bytes(), [0, 1]].concat());
    message
}

/// A server that knows the addresses of one name, in lower case, and no other name.
fn name_server(host: &Host, name: &str, addresses: &[Ipv4Addr], tasks: &Tasks) -> Result<SocketAddr> {
    let at = SocketAddr::new(host.v4.into(), 53);
    let socket = host.sockets().udp(at)?;
    let (known, addresses) = (query(name, A), addresses.to_vec());
    tasks.spawn("name server", async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            // The name in upper case asks for the same; options after the question are left out.
            let Some(question) = buffer.get(12..length.min(known.len())) else { continue };
            let is_known = question.eq_ignore_ascii_case(&known[12..]);
            // The name without type and class: of other types there is no data.
            let name = known.len() - 4;
            let exists = buffer[12..name].eq_ignore_ascii_case(&known[12..name]);
            let mut answer = buffer[..12 + question.len()].to_vec();
            answer[2] |= 0x80;
            answer[3] = if exists { NO_ERROR } else { NO_SUCH_NAME };
            answer[7] = if is_known { u8::try_from(addresses.len()).unwrap_or(0) } else { 0 };
            answer[8..12].fill(0);
            for address in addresses.iter().filter(|_| is_known) {
                // The question's name, type A, class IN, one second, four bytes.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                answer.extend(address.octets());
            }
            let _ = socket.send_to(&answer, from).await;
        }
    });
    Ok(at)
}

/// The answer of a server to a query from this port.
async fn answer(from: &Host, port: u16, server: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    let socket = from.sockets().udp((from.v4, port).into())?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; 512];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await.context("no answer")??;
    answer.truncate(length);
    Ok(answer)
}

fn code(answer: &[u8]) -> u8 {
    answer.get(3).map_or(u8::MAX, |byte| byte & 0x0f)
}

/// The number of records that a message has, but for its question.
fn records(answer: &[u8]) -> u8 {
    answer.get(7).copied().unwrap_or(u8::MAX)
}

/// A name with two addresses, of which one has nothing that listens.
pub(crate) fn c04_each_address_of_a_name_is_tried() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        // A host that is there, since a silent one would cost the patience of a connection.
        let dead = lab.lan.host()?;
        let (alive, refusing) = (lab.outsider.v4, dead.v4);
        says(&lab.outsider.sockets(), (alive, APP).into(), "alive", &lab.tasks)?;
        let resolver = name_server(&lab.outsider, "db.example.com", &[refusing, alive], &lab.tasks)?;
        // The agent's own, which the whole test has.
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), format!("nameserver {}\n", resolver.ip()))?;
        mount(Some(file.path()), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        // Control: outside of the mesh, as libraries do it, one address after the other.
        ensure!(asked(&lab.client, (refusing, APP).into()).await.is_err());
        ensure!(asked(&lab.client, (alive, APP).into()).await?.starts_with("alive"));
        let service = service("db", "vips: [net1/198.51.100.4]", &format!("80: {APP}"));
        let endpoint =
            endpoint("db", "workloadIps: [], hostname: db.example.com", "db", &format!("80: {APP}"));
        let (agent, _zds) = serve(&lab, 0, &lab.client, "client", &mesh(&lab, &endpoint, &service)).await?;
        for turn in 0..40 {
            let said = asked(&lab.client, ([198, 51, 100, 4], 80).into()).await;
            let Ok(said) = &said else {
                anyhow::bail!("connection {turn}: {said:?}\n{}", agent.terminate()?.log);
            };
            ensure!(said.starts_with("alive"), "connection {turn}: {said}");
        }
        agent.stop()?;
        Ok(())
    })
}

pub(crate) fn c08_a_query_from_port_53_is_answered() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let server =
            name_server(&lab.outsider, "www.example.com", &[Ipv4Addr::new(192, 0, 2, 8)], &lab.tasks)?;
        let www = query("www.example.com", A);
        // Control: outside of the mesh.
        let expected = answer(&lab.client, 53, server, &www).await?;
        ensure!(expected.ends_with(&[192, 0, 2, 8]), "{expected:?}");
        let (agent, _zds) = serve(&lab, 0, &lab.client, "client", &lab.local("")).await?;
        ensure!(answer(&lab.client, 53, server, &www).await? == expected);
        // A name of the mesh, which the agent answers itself.
        let mesh = query("echo.ns.svc.cluster.local", A);
        ensure!(answer(&lab.client, 53, server, &mesh).await?.ends_with(&[10, 96, 0, 1]));
        agent.stop()?;
        Ok(())
    })
}

pub(crate) fn c11_another_type_of_a_name_of_the_mesh_is_no_data() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let server = name_server(&lab.outsider, "www.example.com", &[], &lab.tasks)?;
        let ours = query("echo.ns.svc.cluster.local", MX);
        // Control: outside of the mesh nobody knows the name.
        ensure!(code(&answer(&lab.client, 0, server, &ours).await?) == NO_SUCH_NAME);
        let (agent, _zds) = serve(&lab, 0, &lab.client, "client", &lab.local("")).await?;
        let got = answer(&lab.client, 0, server, &ours).await?;
        ensure!(code(&got) == NO_ERROR && records(&got) == 0, "not NODATA: {got:?}");
        // A name that is not the mesh's either is still relayed.
        let other = query("nowhere.example.com", MX);
        ensure!(code(&answer(&lab.client, 0, server, &other).await?) == NO_SUCH_NAME);
        agent.stop()?;
        Ok(())
    })
}

pub(crate) fn c12_a_host_in_upper_case_resolves() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let host = "API.Partner2.example";
        let outside = Ipv4Addr::new(192, 0, 2, 12);
        let server = name_server(&lab.outsider, &host.to_lowercase(), &[outside], &lab.tasks)?;
        let resolve = async |name: &str| answer(&lab.client, 0, server, &query(name, A)).await;
        // Control: outside of the mesh case means nothing.
        for name in [host, &host.to_lowercase()] {
            ensure!(resolve(name).await?.ends_with(&outside.octets()), "{name}");
        }
        let entry = format!(
            "- {{name: partner, namespace: ns, hostname: {host}, vips: [net1/198.51.100.12], ports: {{443: 443}}}}\n"
        );
        let (agent, _zds) = serve(&lab, 0, &lab.client, "client", &lab.local(&entry)).await?;
        for name in [host, &host.to_lowercase()] {
            let got = resolve(name).await?;
            ensure!(got.ends_with(&[198, 51, 100, 12]), "{name}: {got:?}");
        }
        agent.stop()?;
        Ok(())
    })
}
