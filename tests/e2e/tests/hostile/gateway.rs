//! Attacks on the gateway role, with two victims through the same gateway: one in an outer tunnel, one on its TCP port.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::lab;
use isthmus_kit::pki::Ca;
use isthmus_kit::process::Process;
use isthmus_kit::tls;
use isthmus_kit::wait::within;
use isthmus_rt::task::Tasks;
use tokio::io::AsyncWriteExt as _;

use crate::cgroup::Cgroup;
use crate::gateway_lab::{Dialer, GatewayLab, HBONE, PLAIN, Tunnel, certificates};
use crate::plane::{CONNECTS, MEMORY, complaints, status};
use crate::world::{Cue, LIMIT, MIB, NOISE, p99, round_trip};

/// What the gateway may keep open after an attack.
const DESCRIPTORS: usize = 40;
/// How long it may take to close what an attacker left.
const SETTLE: Duration = Duration::from_secs(30);

fn name(service: &str) -> String {
    format!("{service}.sample.svc.cluster.local:80")
}

/// A stream of an outer tunnel to a pod that echoes.
struct Inner(Tunnel);

impl Inner {
    async fn new(dialer: &Dialer, tasks: &Tasks) -> Result<Self> {
        let mut tunnel = dialer.tunnel(&certificates(tasks)).await?;
        tunnel.ask(1, &name("hello")).await?;
        ensure!(tunnel.answer().await? == (1, "200".to_owned()));
        Ok(Self(tunnel))
    }

    async fn round_trip(&mut self) -> Result<()> {
        self.0.0.data(1, &[7; 256], false).await?;
        self.0.bytes(1, 256).await?;
        self.0.0.window_update(0, 256).await?;
        self.0.0.window_update(1, 256).await
    }

    async fn p99(&mut self) -> Result<Duration> {
        let mut all = Vec::new();
        for _ in 0..300 {
            let start = Instant::now();
            self.round_trip().await?;
            all.push(start.elapsed());
        }
        all.sort_unstable();
        Ok(all[all.len() * 99 / 100])
    }
}

/// New clients of both kinds.
async fn newcomers(lab: &GatewayLab) -> Result<()> {
    let both = async {
        round_trip(&mut lab.dial(PLAIN).await?).await?;
        Inner::new(&lab.dialer(), &lab.tasks).await?.round_trip().await
    };
    tokio::time::timeout(2 * CONNECTS, both).await.context("a new client waits too long")?
}

fn descriptors(gateway: &Process) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))?.count())
}

/// Measures both victims in quiet and under attack.
async fn judge<F>(attack: impl FnOnce(Dialer, Cue) -> F + Send + 'static) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let lab = GatewayLab::new()?;
    let mut gateway =
        lab.gateway_with(&[("ISTHMUS_MEMORY_BUDGET", "64Mi"), ("RUST_LOG", "info,access=off")]).await?;
    let group = Cgroup::with(gateway.pid(), LIMIT);
    for (service, port) in [("hello", HBONE), ("plain", 8080)] {
        let pod = lab.pod(service)?;
        lab::echo(&pod.sockets(), SocketAddr::new(pod.v4.into(), port), &lab.tasks)?;
    }
    // Sends without end.
    let source = lab.serve("slow")?;
    let sources = Tasks::new("sources");
    lab.tasks.spawn("source", async move {
        while let Ok((mut stream, _)) = source.accept().await {
            sources.spawn("one", async move { while stream.write_all(&[0; 16 * 1024]).await.is_ok() {} });
        }
    });
    let mut plain = lab.dial(PLAIN).await?;
    plain.set_nodelay(true)?;
    let mut inner = Inner::new(&lab.dialer(), &lab.tasks).await?;
    let quiet = [p99(&mut plain).await?, inner.p99().await?];
    let before = descriptors(&gateway)?;
    let (cue, is_ready, end) = Cue::new();
    let dialer = lab.dialer();
    let attacker = std::thread::spawn(move || lab::block_on(attack(dialer, cue)));
    let start = Instant::now();
    while is_ready.try_recv().is_err() {
        ensure!(start.elapsed() < Duration::from_secs(60), "the attack does not reach its height");
        if attacker.is_finished() {
            break;
        }
        round_trip(&mut plain).await.context("the plain victim, while the attack builds up")?;
        inner.round_trip().await.context("the victim, while the attack builds up")?;
    }
    newcomers(&lab).await.context("under attack")?;
    let attacked = [p99(&mut plain).await?, inner.p99().await?];
    newcomers(&lab).await.context("under attack")?;
    let most = descriptors(&gateway)?;
    drop(end);
    attacker.join().map_err(|_| anyhow::anyhow!("the attacker panicked"))??;
    let closed = async || (descriptors(&gateway).ok()? <= before + DESCRIPTORS).then_some(());
    within(SETTLE, closed).await.context("descriptors of the attack stay open")?;
    newcomers(&lab).await.context("after the attack")?;
    let peak = status(gateway.pid(), "VmHWM:")?;
    let said = complaints(&gateway);
    eprintln!(
        "p99 {quiet:?} -> {attacked:?}; descriptors {before} -> {most}; peak {} MiB{}; {} complaints, first {:?}",
        peak / MIB,
        if group.is_some() { ", in a cgroup of 256 MiB" } else { "" },
        said.len(),
        said.first(),
    );
    for (quiet, attacked) in quiet.into_iter().zip(attacked) {
        ensure!(attacked <= (2 * quiet).max(NOISE), "a victim's p99 went from {quiet:?} to {attacked:?}");
    }
    ensure!(peak < MEMORY, "the gateway's peak was {} MiB", peak / MIB);
    ensure!(gateway.exited()?.is_none(), "the gateway is dead");
    Ok(())
}

pub(crate) fn peers_outside_of_the_mesh_are_refused() -> Result<()> {
    lab::block_on(judge(|dialer, cue| async move {
        let stranger = Ca::new("other")?.workload("spiffe://cluster.local/ns/sample/sa/sleep")?;
        let config = stranger.client_config(&["h2"])?;
        let flood = async {
            let mut refused = 0;
            loop {
                let tcp = dialer.dial(HBONE).await?;
                // It does not trust the gateway either; a client that skips that is refused by its own certificate.
                ensure!(tls::connect(config.clone(), tcp).await.is_err(), "a stranger was let in");
                refused += 1;
                if refused % 4 == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        tokio::select! {
            ended = flood => ended,
            () = cue.hold() => Ok(()),
        }
    }))
}

pub(crate) fn connects_to_what_is_not_global_are_refused() -> Result<()> {
    lab::block_on(judge(|dialer, cue| async move {
        let tasks = Tasks::new("attacker");
        let mut tunnel = dialer.tunnel(&certificates(&tasks)).await?;
        let targets = [name("private"), name("plain"), name("nothing"), "10.0.0.1:80".to_owned()];
        let flood = async {
            for number in 0_usize.. {
                let stream = 2 * u32::try_from(number)? + 1;
                tunnel.ask(stream, &targets[number % targets.len()]).await?;
                let (_, status) = tunnel.answer().await?;
                ensure!(status == "503" || status == "400", "{status}");
                if number % 8 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ended = flood => ended,
            () = cue.hold() => Ok(()),
        }
    }))
}

pub(crate) fn a_connect_for_each_reset_stream_ends_with_a_goaway() -> Result<()> {
    lab::block_on(judge(|dialer, cue| async move {
        let tasks = Tasks::new("attacker");
        let mut tunnel = dialer.tunnel(&certificates(&tasks)).await?;
        let start = Instant::now();
        for stream in (1..).step_by(2) {
            // 6,400 a second.
            if stream % 64 == 1 {
                let due = Duration::from_micros(u64::from(stream / 2) * 156);
                tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
            }
            let sent = async {
                tunnel.ask(stream, &name("hello")).await?;
                tunnel.0.reset(stream, 8).await
            };
            if sent.await.is_err() || start.elapsed() > Duration::from_secs(5) {
                break;
            }
        }
        eprintln!("the attack lasted {:?}", start.elapsed());
        ensure!(start.elapsed() < Duration::from_secs(5), "it was not cut off");
        cue.hold().await;
        Ok(())
    }))
}

pub(crate) fn clients_that_stop_reading_hold_a_bounded_amount() -> Result<()> {
    lab::block_on(judge(|dialer, cue| async move {
        let tasks = Tasks::new("attacker");
        let (certs, mut all) = (certificates(&tasks), Vec::new());
        for _ in 0..100 {
            let mut tunnel = dialer.tunnel(&certs).await?;
            tunnel.0.ack_settings().await?;
            tunnel.0.window_update(0, 1 << 30).await?;
            for stream in [1, 3] {
                tunnel.ask(stream, &name("slow")).await?;
            }
            all.push(tunnel);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        cue.hold().await;
        Ok(())
    }))
}
