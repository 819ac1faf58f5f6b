//! A pod that opens connections as fast as it can, and its neighbour on the same node. What is compared is the neighbour's
//! slowest percent with itself, in short turns of one run: a machine that is slow is slow for both.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::steps::{Answers, Steps, outcomes};
use playground_workloads::request::{Outcome, Summary};

const TARGET: &str = "http://target:5000/hello";
/// Turns of each sort.
const TURNS: usize = 6;
/// Requests of the neighbour in a turn, and how many of them a second.
const REQUESTS: &str = "150";
const RATE: &str = "50";
/// Connections that the flood has under way at all times.
const WORKERS: &str = "64";
/// What the flood may cost the neighbour.
const LIMIT: f64 = 2.0;

pub(super) fn play(steps: &mut Steps<'_>) -> anyhow::Result<()> {
    steps.apply(&steps.own(""), "both")?;
    // Tunnels are there, and names are known, before anything is measured.
    steps.ask("east/neighbour", TARGET, 20)?;
    // By its address: the flood is of connections, not of names.
    let sink = format!("http://{}:5000/hello", steps.pod("east/sink")?.ip);
    steps.ask("east/flooder", &sink, 20)?;
    let (mut quiet, mut crowded) = (Vec::new(), Vec::new());
    let (mut flood, mut time) = (Summary::default(), Duration::ZERO);
    for _ in 0..TURNS {
        quiet.extend(neighbour(steps)?);
        let begun = Instant::now();
        let flooding =
            steps.send("east/flooder", &sink, &["--workers", WORKERS, "-n", "1", "--hold", "--summary"])?;
        crowded.extend(neighbour(steps)?);
        let said: Summary = serde_json::from_str(&flooding.end()?).context("what the flood says")?;
        time += begun.elapsed();
        (flood.sent, flood.failed) = (flood.sent + said.sent, flood.failed + said.failed);
    }
    let rate = flood.sent as f64 / time.as_secs_f64();
    let detail = format!("{} connections, {rate:.0} a second, {} failed", flood.sent, flood.failed);
    steps.check("the flood is more than the neighbour's trickle", rate > RATE.parse::<f64>()?, detail);
    for (when, outcomes) in [("while it is quiet", &quiet), ("in the flood", &crowded)] {
        let answers = Answers::of(outcomes);
        let detail = format!("{}; {}", answers.detail(), spread(outcomes));
        steps.check(
            format!("{when} every request of the neighbour is answered"),
            answers.failed == 0,
            detail,
        );
    }
    let (before, after) = (percentile(&quiet, 99), percentile(&crowded, 99));
    let ratio = after / before;
    let detail = format!("p99 {:.1} ms, quiet {:.1} ms: {ratio:.2} times", after * 1e3, before * 1e3);
    steps.check(
        format!("the flood costs the neighbour at most {LIMIT} times its p99"),
        ratio <= LIMIT,
        detail,
    );
    Ok(())
}

fn neighbour(steps: &Steps<'_>) -> anyhow::Result<Vec<Outcome>> {
    let args = ["--rate", RATE, "-n", REQUESTS, "--json"];
    outcomes(&steps.send("east/neighbour", TARGET, &args)?.end()?)
}

fn spread(outcomes: &[Outcome]) -> String {
    let at = |percent| percentile(outcomes, percent) * 1e3;
    format!("p50 {:.1}, p90 {:.1}, p99 {:.1}, longest {:.1} ms", at(50), at(90), at(99), at(100))
}

/// In seconds. A request that failed took as long as it took to fail.
fn percentile(outcomes: &[Outcome], percent: usize) -> f64 {
    let mut times: Vec<f64> = outcomes.iter().map(|outcome| outcome.seconds).collect();
    times.sort_unstable_by(f64::total_cmp);
    let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_that_of_the_sorted_times() {
        let outcome =
            |seconds| Outcome { status: Some(200), body: String::new(), error: None, seconds, kept: false };
        let outcomes: Vec<_> = (1..=200).rev().map(|n| outcome(f64::from(n))).collect();
        let got = [1, 50, 99, 100].map(|percent| percentile(&outcomes, percent));
        assert_eq!(got, [2.0, 100.0, 198.0, 200.0]);
        assert_eq!(percentile(&[], 99), 0.0);
    }
}
