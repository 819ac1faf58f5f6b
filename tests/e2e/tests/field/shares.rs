//! Whose time is spent, and who waits for whom: a victim's round trips while another is busy, beside those while nothing
//! is, and round trips outside of the mesh at the same time, which the machine alone delays.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::{TwoNodes, VIP};
use isthmus_kit::zds::ZdsPod;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Streams of the busy pod.
const STREAMS: usize = 96;
/// Round trips that are measured.
const TRIPS: usize = 100;
/// What the agents' part of a round trip may cost more than the control's in a test's build of them.
const OWN: Duration = Duration::from_millis(15);

/// Round trips of a new connection each, sorted.
async fn trips(from: &Host, to: SocketAddr) -> Result<Vec<Duration>> {
    let mut took = Vec::with_capacity(TRIPS);
    for _ in 0..TRIPS {
        let begun = Instant::now();
        let mut stream = from.sockets().connect(to, None, SOON).await?;
        stream.write_all(b"!").await?;
        tokio::time::timeout(SOON, stream.read_exact(&mut [0])).await.context("no echo")??;
        took.push(begun.elapsed());
    }
    took.sort();
    Ok(took)
}

/// Medians of a victim's round trips and of the control's at the same time.
async fn beside(victim: (&Host, SocketAddr), control: (&Host, SocketAddr)) -> Result<[Duration; 2]> {
    let (mesh, outside) = tokio::try_join!(trips(victim.0, victim.1), trips(control.0, control.1))?;
    Ok([mesh[TRIPS / 2], outside[TRIPS / 2]])
}

/// Another pod of the agent sends as much as it can through tunnels, whose owners seal and frame it.
pub(crate) fn c14_a_busy_pod_takes_no_others_turn() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (other, observer) = (lab.lan.host()?, lab.lan.host()?);
        let app = SocketAddr::new(lab.server.v4.into(), APP);
        let (listener, _) = lab.server.sockets().listen(app, Transparent::Never)?;
        let sinks = Tasks::new("sinks");
        lab.tasks.spawn("sink", async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                sinks.spawn("sink's connection", async move {
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                });
            }
        });
        let echo = lab::echo(&lab.outsider.sockets(), (lab.outsider.v4, APP).into(), &lab.tasks)?;
        let pod = format!(
            "- {{uid: c1//Pod/ns/quiet, name: quiet, namespace: ns, serviceAccount: quiet, network: net1, \
             clusterId: c1, workloadIps: [{}], protocol: HBONE, node: n0, services: {{}}}}\n",
            other.v4
        );
        let local = mesh(&lab, &pod, "");
        let (_client, zds) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (_server, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        rules::apply_pod(&other.netns, &PodRules::default())?;
        let info = ZdsPod { uid: "quiet", name: "quiet", namespace: "ns", service_account: "quiet" };
        ensure!(zds.add(&info, other.netns.fd()).await?.is_none());
        let (victim, control) = ((&other, echo), (&observer, echo));
        let [quiet, _] = beside(victim, control).await?;
        let senders = Tasks::new("senders");
        for _ in 0..STREAMS {
            let mut stream = lab.client.sockets().connect(VIP, None, SOON).await?;
            senders.spawn("sender", async move { while stream.write_all(&[7; 65_536]).await.is_ok() {} });
        }
        let [busy, outside] = beside(victim, control).await?;
        ensure!(
            busy <= (quiet + outside) * 4 + OWN,
            "a median of {busy:?}, while nothing is busy {quiet:?}, outside of the mesh {outside:?}"
        );
        Ok(())
    })
}

/// Connections to a service of many endpoints, whose tables are built, beside others of the same pod; and the same beside as
/// many connections to a service of one endpoint.
pub(crate) fn c15_a_large_service_delays_no_other_connection() -> Result<()> {
    const ENDPOINTS: usize = 700;
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let echo = lab::echo(&lab.outsider.sockets(), (lab.outsider.v4, APP).into(), &lab.tasks)?;
        let endpoints = |name: &str, count: usize| -> String {
            let one = |n| {
                format!(
                    "- {{uid: {name}{n}, name: {name}{n}, namespace: ns, network: net1, workloadIps: [{}], \
                     services: {{ns/{name}.example.com: {{80: {APP}}}}}}}\n",
                    lab.outsider.v4
                )
            };
            (0..count).map(one).collect()
        };
        let (large, small) = ([198, 51, 100, 15], [198, 51, 100, 16]);
        let ports = format!("80: {APP}");
        let services = [
            service("large", "vips: [net1/198.51.100.15]", &ports),
            service("small", "vips: [net1/198.51.100.16]", &ports),
        ];
        let workloads = endpoints("large", ENDPOINTS) + &endpoints("small", 1);
        // Control: outside of the mesh.
        beside_callers(&lab.client, echo, echo).await?;
        let local = mesh(&lab, &workloads, &services.concat());
        let (_agent, _zds) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let large = beside_callers(&lab.client, echo, (large, 80).into()).await?;
        let small = beside_callers(&lab.client, echo, (small, 80).into()).await?;
        ensure!(large <= small * 3 + OWN, "a median of {large:?}, beside a small service {small:?}");
        Ok(())
    })
}

/// The median of round trips while the same pod calls another address again and again.
async fn beside_callers(from: &Host, to: SocketAddr, called: SocketAddr) -> Result<Duration> {
    let (callers, over) = (Tasks::new("callers"), Arc::new(AtomicBool::new(false)));
    let failed = Arc::new(AtomicBool::new(false));
    for _ in 0..8 {
        let (from, over, failed) = (from.clone(), Arc::clone(&over), Arc::clone(&failed));
        callers.spawn("caller", async move {
            while !over.load(Ordering::Relaxed) {
                if asked_for_one(&from, called).await.is_err() {
                    return failed.store(true, Ordering::Relaxed);
                }
            }
        });
    }
    let took = trips(from, to).await?;
    over.store(true, Ordering::Relaxed);
    callers.wait().await;
    ensure!(!failed.load(Ordering::Relaxed), "{called} does not answer");
    Ok(took[TRIPS / 2])
}

async fn asked_for_one(from: &Host, to: SocketAddr) -> Result<()> {
    let mut stream = from.sockets().connect(to, None, SOON).await?;
    stream.write_all(b"!").await?;
    tokio::time::timeout(SOON, stream.read_exact(&mut [0])).await.context("no echo")??;
    Ok(())
}
