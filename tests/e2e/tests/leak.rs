//! A pod of the mesh fails closed: without its agent its traffic is dropped, and never leaves in plaintext.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::{Agent, TwoNodes, VIP};
use isthmus_kit::{probe, zds::ZdsPeer};
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;
use tokio::sync::mpsc;

const TEXT: &[u8] = b"what must not be read on the way";
/// The application's port.
const PORT: u16 = 8080;
/// Requests at random times.
const MOMENTS: usize = 100;
/// Bounds of the random pauses between two requests and in each state of the agent, in milliseconds.
const PAUSE: u64 = 250;

fn main() -> ExitCode {
    lab::main_with_programs(&lab::tests![
        a_pod_without_its_agent_sends_nothing,
        nothing_leaks_at_a_hundred_random_moments_of_agent_restarts
    ])
}

fn captured(pod: &Netns) -> Result<()> {
    Ok(rules::apply_pod(pod, &PodRules { dns_capture: false, ..PodRules::default() })?)
}

/// An application on the server, whose agent runs.
async fn with_server(lab: &TwoNodes) -> Result<(SocketAddr, Agent, ZdsPeer)> {
    let app = SocketAddr::new(lab.server.v4.into(), PORT);
    lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
    let (agent, zds) = lab.serve(1, &lab.server, "server", &lab.local(""), captured).await?;
    Ok((app, agent, zds))
}

/// Whether a host is answered in time.
async fn answered(from: &Host, to: SocketAddr) -> bool {
    let patience = Duration::from_secs(3);
    let exchange = async {
        let stream = from.sockets().connect(to, None, patience).await?;
        lab::exchange(stream, TEXT).await
    };
    tokio::time::timeout(patience, exchange).await.is_ok_and(|got| got.is_ok_and(|bytes| bytes == TEXT))
}

fn a_pod_without_its_agent_sends_nothing() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (app, _server, _zds) = with_server(&lab).await?;
        let wire = Capture::open(&lab.client.netns, "eth0")?;
        ensure!(answered(&lab.client, app).await, "the application does not answer");
        let frames = wire.drain();
        ensure!(
            probe::syns(&frames, PORT) == 1 && probe::contains(&frames, TEXT),
            "control: the packets are not captured"
        );

        for kill in [false, true] {
            let local = lab.local("");
            let (agent, zds) = lab.serve(0, &lab.client, "client", &local, captured).await?;
            let _ = wire.drain();
            ensure!(answered(&lab.client, app).await, "not answered through the agent");
            if kill {
                drop(agent)
            } else {
                drop(agent.stop()?)
            }
            drop(zds);
            for to in [app, VIP] {
                ensure!(!answered(&lab.client, to).await, "{to} was reached without an agent");
            }
            let frames = wire.drain();
            ensure!(probe::tls_bytes(&frames, 15008) > TEXT.len(), "the agent's own traffic was not seen");
            ensure!(probe::syns(&frames, PORT) == 0, "a connection to the application's port left");
            ensure!(!probe::contains(&frames, TEXT), "plaintext left the pod");
            ensure!(answered(&lab.outsider, app).await, "a host outside the mesh is not answered");
        }
        Ok(())
    })
}

fn nothing_leaks_at_a_hundred_random_moments_of_agent_restarts() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (app, _server, _zds) = with_server(&lab).await?;
        let local = lab.local("");
        // Rules first, as the node role does: from here on the pod is closed.
        captured(&lab.client.netns)?;
        let (client, server) =
            (Capture::open(&lab.client.netns, "eth0")?, Capture::open(&lab.server.netns, "eth0")?);
        let enough = AtomicBool::new(false);
        let come_and_go = async {
            let mut lives = 0;
            while !enough.load(Relaxed) {
                let (agent, zds) = lab.serve(0, &lab.client, "client", &local, captured).await?;
                a_moment().await;
                // Half of the agents are ended by SIGTERM, the others by SIGKILL.
                if lives % 2 == 0 {
                    terminate(agent).await?
                } else {
                    drop(agent)
                }
                drop(zds);
                a_moment().await;
                lives += 1;
            }
            anyhow::Ok(lives)
        };
        let ask = async {
            let seen = requests(&lab, app).await;
            enough.store(true, Relaxed);
            seen
        };
        let begun = Instant::now();
        let (lives, seen) = tokio::try_join!(come_and_go, ask)?;
        println!("{lives} lives of the agent, {seen:?}, in {:?}", begun.elapsed());
        ensure!(seen.answered > 0 && seen.failed > 0, "the moments were not spread: {seen:?}");
        ensure!(seen.outside == seen.asked_outside, "a pod out of the mesh suffered: {seen:?}");

        let (client, server) = (client.drain(), server.drain());
        ensure!(probe::syns(&client, PORT) == 0, "a connection to the application's port left");
        ensure!(!probe::contains(&client, TEXT), "plaintext left the pod");
        ensure!(probe::syns_from(&server, lab.client.v4.into(), PORT) == 0, "plaintext reached the server");
        let control = probe::syns_from(&server, lab.outsider.v4.into(), PORT);
        ensure!(control == seen.asked_outside, "the control failed: {control} connections were seen");
        Ok(())
    })
}

/// Outcomes of the requests.
#[derive(Debug, Default)]
struct Outcomes {
    answered: usize,
    failed: usize,
    /// Of a host outside the mesh.
    outside: usize,
    asked_outside: usize,
}

/// Sends requests at random moments, each in a task of its own: one that waits delays no other.
async fn requests(lab: &TwoNodes, app: SocketAddr) -> Result<Outcomes> {
    let tasks = Tasks::new("requests");
    let (tell, mut told) = mpsc::unbounded_channel();
    let (client, outsider) = (Arc::new(lab.client.clone()), Arc::new(lab.outsider.clone()));
    let mut seen = Outcomes::default();
    for moment in 0..MOMENTS {
        a_moment().await;
        // Service address and pod address alternately; from the outsider now and then, always by the pod's.
        let to = if moment % 4 == 3 { VIP } else { app };
        let mut wanted = vec![(Arc::clone(&client), to, false)];
        if moment % 5 == 0 {
            wanted.push((Arc::clone(&outsider), app, true));
            seen.asked_outside += 1;
        }
        for (from, to, outside) in wanted {
            let tell = tell.clone();
            tasks.spawn("request", async move {
                // The receiver is gone only when the test has failed.
                let _ = tell.send((outside, answered(&from, to).await));
            });
        }
    }
    for _ in 0..MOMENTS + seen.asked_outside {
        match told.recv().await.context("a request was lost")? {
            (true, answered) => seen.outside += usize::from(answered),
            (false, true) => seen.answered += 1,
            (false, false) => seen.failed += 1,
        }
    }
    Ok(seen)
}

/// A random pause, so that the moments are independent.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..PAUSE))).await;
}

/// Ends an agent without delaying the requests; open ones may be reset.
async fn terminate(agent: Agent) -> Result<()> {
    let ended = tokio::task::spawn_blocking(move || agent.terminate()).await??;
    ensure!(ended.status.success(), "{}: {}{}", ended.status, ended.log, ended.error);
    Ok(())
}
