//! The cost of a new connection: how many per second two agents carry from a pod on one node to a pod on another, and the
//! processor time of both for each. The same through two ztunnels, in the same run, when `ISTHMUS_UPSTREAM_ZTUNNEL`
//! names its program, and over the same wire without any agent.
//!
//! `-- 20000` is another number of connections than 5,000.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_benches::agents::{self, Agents, Road, Subject};
use isthmus_benches::isolated;
use isthmus_benches::new_connections::{self, CLIENTS};
use isthmus_kit::two_nodes::TwoNodes;

const CONNECTIONS: u32 = 5000;
/// Connections before the measurement: they fetch certificates and open the tunnel.
const WARM_UP: u32 = 300;
const PORT: u16 = 8080;

fn main() -> Result<ExitCode> {
    isolated(&["isthmus"], measure)
}

/// What a number of connections took.
struct Figures {
    name: &'static str,
    per_second: f64,
    /// Processor time of each agent, the client's first, for one connection.
    each: Option<[Duration; 2]>,
}

fn measure() -> Result<ExitCode> {
    let number = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(CONNECTIONS);
    println!("{number} connections by {CLIENTS} clients, each with a byte there and a byte back");
    let mut all = Vec::new();
    for subject in agents::subjects()? {
        let figures = measured(&subject, number).with_context(|| subject.name)?;
        println!("  {}", figures.line());
        all.push(figures);
    }
    compare(&all);
    Ok(ExitCode::SUCCESS)
}

fn measured(subject: &Subject, number: u32) -> Result<Figures> {
    let lab = TwoNodes::new()?;
    agents::prepare(&lab)?;
    let server = new_connections::serve(&lab.server, PORT)?;
    let agents = subject.start(&lab, Road::Hbone)?;
    new_connections::run(&lab.client, server, WARM_UP)?;
    let before = agents.as_ref().map(Agents::usage).transpose()?;
    let begun = Instant::now();
    new_connections::run(&lab.client, server, number)?;
    let took = begun.elapsed();
    let after = agents.as_ref().map(Agents::usage).transpose()?;
    let each =
        before.zip(after).map(|(before, after)| [0, 1].map(|at| (after[at].cpu - before[at].cpu) / number));
    if let Some(each) = each {
        ensure!(each.iter().all(|each| !each.is_zero()), "an agent carried nothing");
    }
    Ok(Figures { name: subject.name, per_second: f64::from(number) / took.as_secs_f64(), each })
}

impl Figures {
    fn line(&self) -> String {
        let rate = format!("{:<8} {:>8.0} connections per second", self.name, self.per_second);
        let Some([client, server]) = self.each else { return rate };
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        format!(
            "{rate}, {:>6.0} µs of the client's agent and {:>6.0} µs of the server's for each",
            micros(client),
            micros(server)
        )
    }

    fn both(&self) -> Option<f64> {
        self.each.map(|each| each.iter().sum::<Duration>().as_secs_f64())
    }
}

/// Each result with its ratio to the one before.
fn compare(all: &[Figures]) {
    let of = |name: &str| all.iter().find(|figures| figures.name == name);
    println!("\nnew connections, ratios of this run:");
    if let (Some(direct), Some(ours)) = (of("direct"), of("isthmus")) {
        println!("  isthmus: {:.3} of the direct rate", ours.per_second / direct.per_second);
    }
    if let (Some(ours), Some(theirs)) = (of("isthmus"), of("ztunnel")) {
        let cpu = ours.both().zip(theirs.both()).map(|(ours, theirs)| ours / theirs);
        println!(
            "  isthmus: {:.2} times ztunnel's rate, {:.2} of its processor time for each",
            ours.per_second / theirs.per_second,
            cpu.unwrap_or(f64::NAN)
        );
    }
}
