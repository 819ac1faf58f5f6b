//! An agent of the playground is killed repeatedly: while it is down, and while it has restarted and not yet received the
//! mesh, its pods send nothing in plaintext.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::{lab, probe};
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::Sockets;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::playground::{EAST, HBONE, PORT, Playground, TEXT, pods_on_each_node};

/// Number of kills. The kubelet backs off longer before each restart.
const DEATHS: usize = 3;
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest restart of an agent.
const BACK: Duration = Duration::from_secs(30);

pub(crate) fn an_agent_restarting_under_a_control_plane_leaks_nothing() -> Result<()> {
    let playground = Playground::up(&[("east/test.yaml", pods_on_each_node())])?;
    let server = playground.pod("east/helloworld-v1")?;
    let node = EAST.into_iter().find(|node| **node != server.node).context("node")?;
    let (asker, plain) =
        (playground.pod(&format!("east/asker-{node}"))?, playground.pod(&format!("east/plain-{node}"))?);
    let app = SocketAddr::new(server.ip(), PORT);
    let wire = Capture::open(&*playground.node(node)?, &playground.veth(&asker)?)?;
    let outside = Capture::open(&*playground.node(node)?, &playground.veth(&plain)?)?;
    lab::block_on(async {
        let (asker_ns, plain_ns) = (playground.netns(&asker)?, playground.netns(&plain)?);
        ensure!(answered(&asker_ns, app).await, "the application does not answer");
        let (mut failed, mut good) = (0, 0);
        for death in 0..DEATHS {
            kill(Pid::from_raw(playground.pid(&playground.pod_on("east/ztunnel", node)?)?), Signal::SIGKILL)?;
            let (bad, ok) = until_back(&asker_ns, app).await.with_context(|| format!("death {death}"))?;
            ensure!(bad > 0, "the agent was never down");
            ensure!(answered(&plain_ns, app).await, "a pod outside the mesh is not answered");
            (failed, good) = (failed + bad, good + ok);
        }
        println!("{failed} requests failed, {good} were answered");
        let frames = wire.drain();
        ensure!(probe::tls_bytes(&frames, HBONE) > 0, "the agent's own traffic was not seen");
        ensure!(probe::syns(&frames, PORT) == 0, "a connection to the application's port left");
        ensure!(!probe::contains(&frames, TEXT.as_bytes()), "plaintext arrived");
        let frames = outside.drain();
        ensure!(probe::syns(&frames, PORT) == DEATHS, "control: the packets are not captured");
        ensure!(probe::contains(&frames, TEXT.as_bytes()), "control: the packets are not captured");
        Ok(())
    })
}

/// Sends requests without pause until several in a row are answered; returns the failures and the answers.
async fn until_back(from: &Arc<Netns>, app: SocketAddr) -> Result<(usize, usize)> {
    let tasks = Tasks::new("requests");
    let (tell, mut told) = mpsc::unbounded_channel();
    let deadline = Instant::now() + BACK;
    let (mut failed, mut good, mut row) = (0, 0, 0);
    while row < 5 {
        ensure!(Instant::now() < deadline, "not back in {BACK:?}: {failed} requests failed");
        let (from, tell) = (Arc::clone(from), tell.clone());
        tasks.spawn("request", async move {
            // The receiver is gone once the agent is back.
            let _ = tell.send(answered(&from, app).await);
        });
        tokio::time::sleep(PAUSE).await;
        while let Ok(answered) = told.try_recv() {
            if answered {
                (good, row) = (good + 1, row + 1);
            } else {
                (failed, row) = (failed + 1, 0);
            }
        }
    }
    Ok((failed, good))
}

async fn answered(from: &Arc<Netns>, to: SocketAddr) -> bool {
    let patience = Duration::from_secs(5);
    let exchange = async {
        let mut stream = Sockets::in_netns(Arc::clone(from)).connect(to, None, patience).await?;
        stream.write_all(b"GET /hello HTTP/1.0\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = tokio::time::timeout(patience, exchange).await;
    answer.is_ok_and(|got| got.is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(TEXT)))
}
