//! A pod in the mesh is closed without its agent: what it sends is lost with the agent, and never leaves in plain text.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::{self, Host};
use isthmus_kit::two_nodes::{Agent, VIP, World};
use isthmus_kit::{probe, zds::ZdsPeer};
use isthmus_node::rules::{self, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;
use tokio::sync::mpsc;

const TEXT: &[u8] = b"what must not be read on the way";
/// The application's port.
const PORT: u16 = 8080;
/// How many requests are sent at random moments.
const MOMENTS: usize = 100;
/// The random pauses, in milliseconds, between two requests and in each state of the agent.
const PAUSE: u64 = 250;

fn main() -> ExitCode {
    lab::main_with_programs(&lab::tests![
        without_its_agent_a_pod_sends_nothing,
        at_a_hundred_random_moments_of_a_coming_and_going_agent_nothing_leaks
    ])
}

fn captured(pod: &Netns) -> Result<()> {
    Ok(rules::apply_pod(pod, &PodRules { dns_capture: false, ..PodRules::default() })?)
}

/// An application on the server, whose agent runs.
async fn with_server(world: &World) -> Result<(SocketAddr, Agent, ZdsPeer)> {
    let app = SocketAddr::new(world.server.v4.into(), PORT);
    lab::echo(&world.server.sockets(), app, &world.tasks)?;
    let (agent, zds) = world.serve(1, &world.server, "server", &world.local(""), captured).await?;
    Ok((app, agent, zds))
}

/// Whether a host is answered. Not to be answered in time is an answer too.
async fn answered(from: &Host, to: SocketAddr) -> bool {
    let patience = Duration::from_secs(3);
    let exchange = async {
        let stream = from.sockets().connect(to, None, patience).await?;
        lab::exchange(stream, TEXT).await
    };
    tokio::time::timeout(patience, exchange).await.is_ok_and(|got| got.is_ok_and(|bytes| bytes == TEXT))
}

fn without_its_agent_a_pod_sends_nothing() -> Result<()> {
    let world = World::new()?;
    lab::block_on(async {
        let (app, _server, _zds) = with_server(&world).await?;
        let wire = Capture::open(&world.client.netns, "eth0")?;
        ensure!(answered(&world.client, app).await, "the application does not answer");
        let frames = wire.drain();
        ensure!(probe::syns(&frames, PORT) == 1 && probe::contains(&frames, TEXT), "the control failed");

        for kill in [false, true] {
            let local = world.local("");
            let (agent, zds) = world.serve(0, &world.client, "client", &local, captured).await?;
            let _ = wire.drain();
            ensure!(answered(&world.client, app).await, "not answered through the agent");
            if kill {
                drop(agent)
            } else {
                drop(agent.stop()?)
            }
            drop(zds);
            for to in [app, VIP] {
                ensure!(!answered(&world.client, to).await, "{to} was reached without an agent");
            }
            let frames = wire.drain();
            ensure!(probe::tls_bytes(&frames, 15008) > TEXT.len(), "the agent's own traffic was not seen");
            ensure!(probe::syns(&frames, PORT) == 0, "a connection to the application's port left");
            ensure!(!probe::contains(&frames, TEXT), "plain text left");
            ensure!(answered(&world.outsider, app).await, "a pod out of the mesh is not answered");
        }
        Ok(())
    })
}

fn at_a_hundred_random_moments_of_a_coming_and_going_agent_nothing_leaks() -> Result<()> {
    let world = World::new()?;
    lab::block_on(async {
        let (app, _server, _zds) = with_server(&world).await?;
        let local = world.local("");
        // Rules first, as the node role does: from here on the pod is closed.
        captured(&world.client.netns)?;
        let (client, server) =
            (Capture::open(&world.client.netns, "eth0")?, Capture::open(&world.server.netns, "eth0")?);
        let enough = AtomicBool::new(false);
        let come_and_go = async {
            let mut lives = 0;
            while !enough.load(Relaxed) {
                let (agent, zds) = world.serve(0, &world.client, "client", &local, captured).await?;
                a_moment().await;
                // Half of them end as Kubernetes would end them, the others as the kernel would.
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
            let seen = requests(&world, app).await;
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
        ensure!(!probe::contains(&client, TEXT), "plain text left");
        ensure!(probe::syns_from(&server, world.client.v4.into(), PORT) == 0, "it even arrived");
        let control = probe::syns_from(&server, world.outsider.v4.into(), PORT);
        ensure!(control == seen.asked_outside, "the control failed: {control} connections were seen");
        Ok(())
    })
}

/// What became of the requests.
#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    failed: usize,
    /// Of a pod that is not in the mesh.
    outside: usize,
    asked_outside: usize,
}

/// Sends requests at random moments, each on its own: one that waits holds no other up.
async fn requests(world: &World, app: SocketAddr) -> Result<Seen> {
    let tasks = Tasks::new("requests");
    let (tell, mut told) = mpsc::unbounded_channel();
    let (client, outsider) = (Arc::new(world.client.clone()), Arc::new(world.outsider.clone()));
    let mut seen = Seen::default();
    for moment in 0..MOMENTS {
        a_moment().await;
        // Service address and pod address by turns; the outsider now and then, always by the pod's.
        let to = if moment % 4 == 3 { VIP } else { app };
        let mut wanted = vec![(Arc::clone(&client), to, false)];
        if moment % 5 == 0 {
            wanted.push((Arc::clone(&outsider), app, true));
            seen.asked_outside += 1;
        }
        for (from, to, outside) in wanted {
            let tell = tell.clone();
            tasks.spawn("request", async move {
                // Nobody listens any more only when the test has failed.
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

/// Some random time: the moments are to have nothing to do with each other.
async fn a_moment() {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..PAUSE))).await;
}

/// Ends an agent without holding up the requests; those that are open may be cut off.
async fn terminate(agent: Agent) -> Result<()> {
    let ended = tokio::task::spawn_blocking(move || agent.terminate()).await??;
    ensure!(ended.status.success(), "{}: {}{}", ended.status, ended.log, ended.error);
    Ok(())
}
