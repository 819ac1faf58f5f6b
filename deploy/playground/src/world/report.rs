//! What a run has shown, as text and as data. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::table::{self, Workload};
use playground_workloads::request::Outcome;

/// The whole run.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) topology: String,
    pub(super) requests: Vec<Requests>,
    /// By cluster, as one of its agents knows them.
    pub(super) workloads: BTreeMap<String, Vec<Workload>>,
    pub(super) checks: Vec<Check>,
    pub(super) pass: bool,
    pub(super) seconds: f64,
}

/// The requests of one pod.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Requests {
    pub(super) from: String,
    pub(super) url: String,
    pub(super) sent: usize,
    pub(super) failed: usize,
    /// How often each answer came.
    pub(super) answers: BTreeMap<String, usize>,
    pub(super) errors: BTreeMap<String, usize>,
    /// Of the median request.
    pub(super) milliseconds: f64,
}

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) pass: bool,
    pub(super) detail: String,
}

impl Requests {
    /// Sums up.
    pub(super) fn of(from: String, url: &str, outcomes: &[Outcome]) -> Self {
        let (mut answers, mut errors, mut failed) = (BTreeMap::new(), BTreeMap::new(), 0);
        for outcome in outcomes {
            match (outcome.status, &outcome.error) {
                (Some(200..300), _) => *answers.entry(outcome.body.trim_end().to_owned()).or_default() += 1,
                (Some(status), _) => *errors.entry(format!("status {status}")).or_default() += 1,
                (None, error) => *errors.entry(error.clone().unwrap_or_default()).or_default() += 1,
            }
        }
        failed += errors.values().sum::<usize>();
        let mut times: Vec<_> = outcomes.iter().map(|outcome| outcome.seconds).collect();
        times.sort_by(f64::total_cmp);
        let milliseconds = times.get(times.len() / 2).copied().unwrap_or_default() * 1000.0;
        Self { from, url: url.to_owned(), sent: outcomes.len(), failed, answers, errors, milliseconds }
    }

    /// How many answers came from a version.
    pub(super) fn version(&self, version: &str) -> usize {
        let start = format!("Hello version: {version},");
        self.answers.iter().filter(|(answer, _)| answer.starts_with(&start)).map(|(_, count)| count).sum()
    }
}

impl Report {
    /// Adds a check.
    pub(super) fn check(&mut self, name: impl Into<String>, pass: bool, detail: impl Into<String>) {
        self.checks.push(Check { name: name.into(), pass, detail: detail.into() });
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        for requests in &self.requests {
            let _ = writeln!(out, "\n{} → {} ({:.1} ms)", requests.from, requests.url, requests.milliseconds);
            for (answer, count) in requests.answers.iter().chain(&requests.errors) {
                let _ = writeln!(out, "{count:>5} × {answer}");
            }
        }
        for (cluster, rows) in &self.workloads {
            let _ = write!(
                out,
                "\nworkloads as the agents of {cluster} know them:\n{}",
                table::workload_table(rows)
            );
        }
        out.push('\n');
        for check in &self.checks {
            let verdict = if check.pass { "pass" } else { "FAIL" };
            let _ = writeln!(out, "{verdict}  {}: {}", check.name, check.detail);
        }
        let verdict = if self.pass { "everything passed" } else { "something FAILED" };
        let _ = writeln!(out, "\n{verdict} ({}, {:.1} s)", self.topology, self.seconds);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: Option<u16>, body: &str) -> Outcome {
        let error = status.is_none().then(|| "refused".to_owned());
        Outcome { status, body: body.to_owned(), error, seconds: 0.002, kept: false }
    }

    #[test]
    fn answers_and_errors_are_counted() {
        let v1 = "Hello version: v1, instance: a\n";
        let outcomes =
            [outcome(Some(200), v1), outcome(Some(200), v1), outcome(Some(503), ""), outcome(None, "")];
        let requests = Requests::of("east/sleep".to_owned(), "u", &outcomes);
        assert_eq!((requests.sent, requests.failed), (4, 2));
        assert_eq!((requests.version("v1"), requests.version("v2")), (2, 0));
        assert_eq!(requests.errors.keys().collect::<Vec<_>>(), ["refused", "status 503"]);
    }
}
