//! Packets on the wires: TLS of the mesh, and the plaintext of clients outside it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::probe::{self, Flow};
use isthmus_kit::{binaries, lab, wait};
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;

use super::playground::{EAST, HBONE, Outcome, PORT, Playground, Pod, TEXT, URL, by, pods_on_each_node};

/// On the network between the clusters: west's first node.
const WEST: &str = "192.168.97.21";
/// Enough that each version answers some: one of them is silent once in half a million runs.
const NUMBER: usize = 20;

/// One wire and the traffic of the mesh that must pass over it.
struct Wire {
    name: &'static str,
    capture: Capture,
    payload: usize,
}

pub(crate) fn only_tls_passes_between_clusters_and_at_pods() -> Result<()> {
    let playground = Playground::up(&[("east/test.yaml", pods_on_each_node())])?;
    let (v1, v2) = (playground.pod("east/helloworld-v1")?, playground.pod("west/helloworld-v2")?);
    // Both on the node that v1 is not on, so that each way to v1 leaves a node too.
    let node = EAST.into_iter().find(|node| **node != v1.node).unwrap_or_default();
    let (asker, plain) =
        (playground.pod(&format!("east/asker-{node}"))?, playground.pod(&format!("east/plain-{node}"))?);
    let mut wires = [
        wire("the node's link to the other nodes and clusters", &*playground.underlay()?, node)?,
        wire("the door of west", &*playground.underlay()?, "west-lb")?,
        wire("the veth of v1", &*playground.node(&v1.node)?, &playground.veth(&v1)?)?,
        wire("the veth of v2", &*playground.node(&v2.node)?, &playground.veth(&v2)?)?,
        wire("the veth of the client", &*playground.node(node)?, &playground.veth(&asker)?)?,
    ];
    let outcomes = playground.request(&asker, URL, NUMBER)?;
    let (by_v1, by_v2) = (by("v1", &outcomes), by("v2", &outcomes));
    ensure!(by_v1 > 0 && by_v2 > 0 && by_v1 + by_v2 == NUMBER, "{outcomes:?}");
    let (from_v1, from_v2) = (payload("v1", &outcomes), payload("v2", &outcomes));
    let payloads = [from_v1 + from_v2, from_v2, from_v1, from_v2, from_v1 + from_v2];
    wires.iter_mut().zip(payloads).for_each(|(wire, payload)| wire.payload = payload);
    wires.iter().try_for_each(|wire| wire.is_closed(&asker))?;
    out_of_the_mesh(&playground, &plain, &v1, &wires)
}

/// Controls: the same captures, and clients outside the mesh.
fn out_of_the_mesh(playground: &Playground, plain: &Pod, v1: &Pod, wires: &[Wire; 5]) -> Result<()> {
    let [link, door, at_v1, ..] = wires;
    answered(playground, plain, &format!("http://{}:{PORT}/hello", v1.ip))?;
    for wire in [link, at_v1] {
        ensure!(probe::contains(&wire.capture.drain(), TEXT.as_bytes()), "{}: not read", wire.name);
    }
    ensure!(!probe::contains(&door.capture.drain(), TEXT.as_bytes()), "{}: read", door.name);
    // Between the clusters: a server on a node of west, outside the mesh.
    let other = wire("west's node", &*playground.underlay()?, "west-1")?;
    let _server = Server::start(&*playground.node("west-1")?)?;
    lab::block_on(listens(playground, plain))?;
    answered(playground, plain, &format!("http://{WEST}:{PORT}/hello"))?;
    for wire in [link, &other] {
        ensure!(probe::contains(&wire.capture.drain(), TEXT.as_bytes()), "{}: not read", wire.name);
    }
    Ok(())
}

/// Waits until the server on west's node can be reached.
async fn listens(playground: &Playground, from: &Pod) -> Result<()> {
    let (sockets, to) = (playground.sockets(from)?, format!("{WEST}:{PORT}").parse()?);
    let connected = async || sockets.connect(to, None, Duration::from_secs(1)).await.ok();
    wait::within(Duration::from_secs(10), connected).await.context("the server on west-1 does not listen")?;
    Ok(())
}

fn answered(playground: &Playground, from: &Pod, url: &str) -> Result<()> {
    let outcomes = playground.request(from, url, 1)?;
    ensure!(outcomes.iter().all(|outcome| outcome.body.starts_with(TEXT)), "{url}: {outcomes:?}");
    Ok(())
}

fn payload(version: &str, outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is(version)).map(|outcome| outcome.body.len()).sum()
}

fn wire(name: &'static str, netns: &Netns, interface: &str) -> Result<Wire> {
    Ok(Wire { name, capture: Capture::open(netns, interface)?, payload: 0 })
}

impl Wire {
    /// Everything on 15008 is TLS from the first byte of each connection, there is enough of it, and the text is
    /// nowhere; nor did the client try the application's own port.
    fn is_closed(&self, client: &Pod) -> Result<()> {
        let frames = self.capture.drain();
        let name = self.name;
        ensure!(!probe::contains(&frames, TEXT.as_bytes()), "{name}: the text was read");
        ensure!(probe::syns_from(&frames, client.ip(), PORT) == 0, "{name}: a plain connection");
        let flows = probe::flows(&frames);
        let hbone: Vec<&Flow> =
            flows.iter().filter(|flow| [flow.from.port(), flow.to.port()].contains(&HBONE)).collect();
        if let Some(odd) = hbone.iter().find(|flow| !flow.whole || !flow.is_tls()) {
            let begin = &odd.bytes[..odd.bytes.len().min(32)];
            anyhow::bail!("{name}: {} to {} is not TLS throughout: {begin:02x?}", odd.from, odd.to);
        }
        let sent = |port: fn(&Flow) -> u16| -> usize {
            hbone.iter().filter(|flow| port(flow) == HBONE).map(|flow| flow.bytes.len()).sum()
        };
        let (requests, answers) = (sent(|flow| flow.to.port()), sent(|flow| flow.from.port()));
        println!("{name}: {requests} bytes to {HBONE}, {answers} bytes from it, payload {}", self.payload);
        ensure!(requests > 0 && answers >= self.payload, "{name}: {answers} bytes of {}", self.payload);
        Ok(())
    }
}

/// The sample's server outside the mesh; killed when dropped.
struct Server(Child);

impl Server {
    fn start(netns: &Netns) -> Result<Self> {
        let mut command = Command::new(binaries::path("playground"));
        command.args(["helloworld", "--version", "plain", "--instance", "node"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(netns.run_thread(|| command.spawn())??))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails when it has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
