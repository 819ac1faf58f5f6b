//! Agent and node role are killed and started at random moments while pods of the mesh send and receive: not a byte of
//! plaintext may be on the pods' wires, where a pod outside of the mesh shows that it would be seen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab::Host;
use isthmus_kit::process::Process;
use isthmus_kit::wait::until;
use isthmus_kit::{lab, probe};
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;

use crate::node_lab::{APP, NodeLab, Pod};

/// `ISTHMUS_KILLS`: moments; `ISTHMUS_SEED` repeats a run's choices. `ISTHMUS_TEST_SECONDS` bounds a long run, in seconds.
const KILLS: usize = 40;
/// Bounds of the random pauses before a kill and before the start that follows, in milliseconds. A start takes a few hundred.
const ALIVE: u64 = 900;
const DEAD: u64 = 250;
const PATIENCE: Duration = Duration::from_millis(700);

const TEXT: &[u8] = b"what must not be read on the way";
const CONTROL: &[u8] = b"what is sent in plaintext on purpose";

/// Outcomes of one client's requests.
#[derive(Debug, Default)]
struct Outcomes {
    sent: AtomicUsize,
    answered: AtomicUsize,
}

/// Sends requests without end, each answered or given up soon.
fn requests(from: Host, to: SocketAddr, text: &'static [u8], tasks: &Tasks) -> Arc<Outcomes> {
    let outcomes = Arc::<Outcomes>::default();
    let counted = Arc::clone(&outcomes);
    tasks.spawn("requests", async move {
        loop {
            counted.sent.fetch_add(1, Relaxed);
            let exchange = async {
                let stream = from.sockets().connect(to, None, PATIENCE).await?;
                lab::exchange(stream, text).await
            };
            let answer = tokio::time::timeout(PATIENCE, exchange).await;
            if answer.is_ok_and(|got| got.is_ok_and(|bytes| bytes.ends_with(text))) {
                counted.answered.fetch_add(1, Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    outcomes
}

/// What a capture saw since it was last asked.
#[derive(Debug, Default)]
struct Seen {
    frames: usize,
    connections: usize,
    texts: usize,
}

impl Seen {
    fn add(&mut self, wire: &Capture, text: &[u8]) {
        let frames = wire.drain();
        self.frames += frames.len();
        self.connections += probe::syns(&frames, APP);
        self.texts +=
            frames.iter().filter(|frame| probe::contains(std::slice::from_ref(frame), text)).count();
    }
}

/// The processes under test; `None` while one is dead.
struct Processes<'a> {
    lab: &'a NodeLab,
    pods: [(&'static str, &'a Pod); 3],
    node: Option<Process>,
    agent: Option<Process>,
}

impl Processes<'_> {
    /// Starts what is dead.
    fn start(&mut self) -> Result<()> {
        if self.node.is_none() {
            self.node = Some(self.lab.start_node()?);
        }
        if self.agent.is_none() {
            self.agent = Some(self.lab.agent(&self.pods, "")?);
        }
        Ok(())
    }

    /// Kills one of them, or both.
    fn kill(&mut self, which: usize) {
        if which != 1 {
            self.agent = None;
        }
        if which != 0 {
            self.node = None;
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

async fn pause(random: &mut fastrand::Rng, most: u64) {
    tokio::time::sleep(Duration::from_millis(random.u64(..most))).await;
}

#[expect(clippy::too_many_lines, reason = "one run from beginning to end, in the order of its steps")]
pub(crate) fn no_plaintext_leaves_while_agent_and_node_role_are_killed_at_random() -> Result<()> {
    let seed = setting("ISTHMUS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let kills = setting("ISTHMUS_KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap_or(KILLS));
    println!("ISTHMUS_SEED={seed} ISTHMUS_KILLS={kills}");
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (a, b, out) = (lab.running("a")?, lab.running("b")?, lab.running("out")?);
        for name in ["a", "b"] {
            lab.mode(name, Some("ambient"));
        }
        let pods = [("a", &a), ("b", &b), ("out", &out)];
        let mut processes = Processes { lab: &lab, pods, node: None, agent: None };
        processes.start()?;
        for (name, pod) in [("a", &a), ("b", &b)] {
            lab.api.redirected(&format!("sample/{name}"), Some("enabled")).await?;
            pod.served(true).await?;
        }
        let wires = [&a, &b, &out].map(|pod| Capture::open(&pod.host.netns, "eth0"));
        let [wire_a, wire_b, wire_out] = wires;
        let (wire_a, wire_b, wire_out) = (wire_a?, wire_b?, wire_out?);
        let (mut meshed, mut control, clients) = (Seen::default(), Seen::default(), Tasks::new("clients"));
        let there = requests(a.host.clone(), b.app(), TEXT, &clients);
        let back = requests(b.host.clone(), a.app(), TEXT, &clients);
        let outside = SocketAddr::new(lab.outsider.v4.into(), APP);
        let plain = requests(out.host.clone(), outside, CONTROL, &clients);

        let (begun, mut random) = (Instant::now(), fastrand::Rng::with_seed(seed));
        for moment in 0..kills {
            pause(&mut random, ALIVE).await;
            processes.kill(random.usize(..3));
            pause(&mut random, DEAD).await;
            processes.start()?;
            for wire in [&wire_a, &wire_b] {
                meshed.add(wire, TEXT);
            }
            control.add(&wire_out, CONTROL);
            let leaked = format!("at moment {moment}: {meshed:?} (ISTHMUS_SEED={seed})");
            ensure!(meshed.connections == 0 && meshed.texts == 0, "plaintext leaked {leaked}");
        }
        for pod in [&a, &b] {
            pod.served(true).await?;
        }
        let answered = [there.answered.load(Relaxed), back.answered.load(Relaxed)];
        until("both are answered again", async || {
            there.answered.load(Relaxed) > answered[0] && back.answered.load(Relaxed) > answered[1]
        })
        .await?;
        clients.abort_all().await;
        for wire in [&wire_a, &wire_b] {
            meshed.add(wire, TEXT);
        }
        control.add(&wire_out, CONTROL);
        println!(
            "{kills} moments in {:?}: a to b {there:?}, b to a {back:?}, outside {plain:?}; wires of the mesh {meshed:?}, \
             control {control:?}",
            begun.elapsed()
        );
        ensure!(meshed.connections == 0 && meshed.texts == 0, "plaintext leaked: {meshed:?}");
        let failed = |all: &Outcomes| all.sent.load(Relaxed) - all.answered.load(Relaxed);
        ensure!(failed(&there) > 0 && failed(&back) > 0, "the moments disturbed nothing");
        let sent = plain.sent.load(Relaxed);
        ensure!(plain.answered.load(Relaxed) + 1 >= sent, "a pod outside of the mesh suffered: {plain:?}");
        ensure!(control.connections + 1 >= sent && control.texts >= 2 * (sent - 1), "{control:?} of {sent}");
        processes.agent.context("the agent is dead")?.stop().await?;
        Ok(())
    })
}
