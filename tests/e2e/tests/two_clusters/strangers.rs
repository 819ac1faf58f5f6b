//! Port 15008 of a pod, and clients outside the mesh.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use isthmus_kit::hbone::client;
use isthmus_kit::lab;
use isthmus_kit::pki::{Ca, Leaf};
use isthmus_kit::probe;
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;

use super::playground::{HBONE, PORT, Playground, Pod, TEXT, pods_on_each_node};

const OURS: &str = "spiffe://cluster.local/ns/sample/sa/sleep";
const THEIRS: &str = "spiffe://elsewhere.example/ns/sample/sa/sleep";

pub(crate) fn clients_without_a_certificate_of_the_mesh_are_refused() -> Result<()> {
    let playground = Playground::up(&[("east/test.yaml", pods_on_each_node())])?;
    let (ca, other) = (playground.ca("east")?, Ca::new("another root")?);
    let root = ca.root_pem();
    let server = playground.pod("east/helloworld-v1")?;
    let plain = playground.pod("east/plain-east-1")?;
    let inside = Capture::open(&*playground.netns(&server)?, "lo")?;
    let proper = ca.workload(OURS)?;
    let strangers = [
        ("no certificate", None),
        ("the right name under another root", Some(other.workload(OURS)?)),
        ("another trust domain under another root", Some(other.workload(THEIRS)?)),
        ("another trust domain under our root", Some(ca.workload(THEIRS)?)),
        ("no mesh name under our root", Some(ca.workload("https://cluster.local/sleep")?)),
        ("a host's name under our root", Some(ca.server(&["sleep.sample"])?)),
    ];
    let knock = |shown| knock(&playground, &plain, &server, shown, &root);
    lab::block_on(async {
        for (who, shown) in &strangers {
            match knock(shown.as_ref()).await {
                Ok((status, text)) => anyhow::bail!("{who}: answered with {status}: {text}"),
                Err(error) => println!("{who}: {error:#}"),
            }
            ensure!(probe::syns(&inside.drain(), PORT) == 0, "{who}: the application was reached");
        }
        let (status, text) = knock(Some(&proper)).await?;
        ensure!(status == 200 && text.contains(TEXT), "the control failed: {status} {text}");
        let reached = probe::syns(&inside.drain(), PORT) > 0;
        ensure!(reached, "the control failed: the application was not seen to be reached");
        Ok(())
    })
}

/// Requests the application's page through a tunnel from a pod outside the mesh; returns the status and the page.
async fn knock(
    playground: &Playground,
    from: &Pod,
    to: &Pod,
    shown: Option<&Leaf>,
    root: &str,
) -> Result<(u16, String)> {
    let door = SocketAddr::new(to.ip(), HBONE);
    let stream = playground.sockets(from)?.connect(door, None, Duration::from_secs(5)).await?;
    let session = client::tls(stream, shown, root).await?;
    let (status, peer) = client::connect(session, &format!("{}:{PORT}", to.ip), &[]).await?;
    let tasks = Tasks::new("knock");
    Ok((status, client::get(client::bytes(peer, &tasks), "/hello").await?))
}
