//! A push of 100,000 workloads, and its effect on connections that are made meanwhile: `resolve` in thread CPU time
//! when nothing is going on, and while the push is applied. Medians, and their ratio, of one run.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use isthmus_benches::proc::thread_time;
use isthmus_benches::{median, mesh};
use isthmus_model::{Interner, NetworkId, Workload};
use isthmus_state::{Options, State, resolve};

const WORKLOADS: u32 = 100_000;
/// Pushes that are measured.
const PUSHES: u32 = 5;
/// Decisions between two clock reads.
const DECISIONS: u32 = 500;
/// The first virtual address of [`mesh`]; there is one for every twenty workloads.
const FIRST_VIP: u32 = 0xac10_0001;

fn main() {
    let workloads = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(WORKLOADS);
    let first: Vec<Duration> = (0..PUSHES).map(|_| first_push(workloads)).collect();
    let state = State::new(Options { own_network: mesh::NETWORK.into(), ..Options::default() });
    let mut texts = Interner::default();
    mesh::push(&state, &mut texts, mesh::mesh(workloads));
    let idle: Vec<Duration> = (0..200).map(|_| decisions(&state)).collect();
    let (mut applied, mut meanwhile) = (Vec::new(), Vec::new());
    for turn in 0..PUSHES {
        let revision = format!("v{}", turn + 2);
        let all = (0..workloads).map(|n| mesh::workload(n, &revision)).collect();
        let (took, felt) = change(&state, mesh::batch(&mut texts, all));
        applied.push(took);
        meanwhile.extend(felt);
    }
    let each = |all: &[Duration]| median(all).unwrap_or_default().as_secs_f64() * 1e9 / f64::from(DECISIONS);
    let (idle, meanwhile) = (each(&idle), each(&meanwhile));
    let seconds = |all: &[Duration]| median(all).unwrap_or_default().as_secs_f64();
    println!("first push of {workloads} workloads, decoded to published: {:.3} s", seconds(&first));
    println!("all {workloads} changed: {:.3} s to apply", seconds(&applied));
    println!(
        "resolve, thread CPU time: {idle:.0} ns idle, {meanwhile:.0} ns during the push: {:.2} of idle",
        meanwhile / idle
    );
}

/// From decoded messages to the published snapshot, nothing known before.
fn first_push(workloads: u32) -> Duration {
    let all = mesh::mesh(workloads);
    let (state, mut texts) = (State::new(Options::default()), Interner::default());
    let begun = Instant::now();
    let applied = mesh::push(&state, &mut texts, all);
    let took = begun.elapsed();
    assert_eq!(applied.workloads, workloads as usize);
    took
}

/// Applies a batch beside a thread that keeps resolving; returns its duration, and the cost of a decision meanwhile.
fn change(state: &State, batch: isthmus_state::Batch) -> (Duration, Vec<Duration>) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let deciding = scope.spawn(|| {
            let mut felt = Vec::new();
            while !over.load(Ordering::Relaxed) {
                felt.push(decisions(state));
            }
            felt
        });
        let begun = Instant::now();
        assert!(state.apply(batch).is_change());
        let took = begun.elapsed();
        over.store(true, Ordering::Relaxed);
        (took, deciding.join().unwrap_or_default())
    })
}

/// The CPU time of some decisions of the calling thread.
fn decisions(state: &State) -> Duration {
    let services = u32::try_from(state.load().services().count()).unwrap_or(u32::MAX);
    let source = Workload { network: mesh::NETWORK.into(), ..Workload::default() };
    let (network, mut rng) = (NetworkId::from(mesh::NETWORK), fastrand::Rng::with_seed(1));
    let begun = thread_time();
    for _ in 0..DECISIONS {
        let vip = IpAddr::from(Ipv4Addr::from(FIRST_VIP + rng.u32(0..services)));
        let snapshot = state.load();
        std::hint::black_box(resolve(&snapshot, &source, SocketAddr::new(vip, 80), &network, &mut rng));
    }
    thread_time() - begun
}
