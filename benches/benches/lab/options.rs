//! The command line of the bench.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// Names that `--only` takes.
const GROUPS: [&str; 10] =
    ["up", "down", "streams", "trips", "requests", "connections", "mixture", "tools", "double", "idle"];

/// What the command line asks for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    /// Time of one measurement, after its warm-up.
    pub(crate) seconds: Duration,
    /// Empty: everything.
    only: Vec<String>,
    /// The whole run once for each; without one, that of the system.
    pub(crate) congestion: Vec<Option<String>>,
}

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut options =
            Self { rounds: 3, seconds: Duration::from_secs(3), only: Vec::new(), congestion: vec![None] };
        while let Some(name) = args.next() {
            let mut value = || args.next().with_context(|| format!("{name} needs a value"));
            match name.as_str() {
                // Cargo's own.
                "--bench" => {}
                "--rounds" => options.rounds = value()?.parse().context("--rounds")?,
                "--seconds" => {
                    let seconds = value()?.parse().context("--seconds")?;
                    options.seconds = Duration::try_from_secs_f64(seconds).context("--seconds")?;
                }
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--congestion" => {
                    options.congestion = value()?.split(',').map(|name| Some(name.to_owned())).collect();
                }
                _ => bail!("{name}: only --rounds, --seconds, --only and --congestion are known"),
            }
        }
        ensure!(options.rounds > 0 && !options.seconds.is_zero(), "nothing to measure");
        for name in &options.only {
            ensure!(GROUPS.contains(&name.as_str()), "--only {name}: one of {}", GROUPS.join(","));
        }
        Ok(options)
    }

    pub(crate) fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == group)
    }
}
