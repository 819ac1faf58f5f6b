//! Facts about a world that is up, which its first process leaves in the folder for the commands that come from outside.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::dir::Dir;
use crate::plan::{Plan, Topology};

/// A world that is up.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunningWorld {
    /// The first process, as it is numbered outside of the world.
    pub(crate) pid: i32,
    /// `multi-primary` or `primary-remote`.
    pub(crate) topology: String,
    /// Names of the clusters.
    pub(crate) clusters: Vec<String>,
}

impl RunningWorld {
    /// The facts of a world with this plan.
    pub(super) fn new(plan: &Plan, pid: i32) -> Self {
        let topology = match plan.topology {
            Topology::MultiPrimary => "multi-primary",
            Topology::PrimaryRemote => "primary-remote",
        };
        let clusters = plan.clusters.iter().map(|cluster| cluster.name.clone()).collect();
        Self { pid, topology: topology.to_owned(), clusters }
    }

    /// Writes the facts into the folder: from now on the world is up.
    pub(super) fn write(&self, dir: &Dir) -> anyhow::Result<()> {
        let path = dir.world();
        fs::write(&path, serde_json::to_vec(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads the facts.
    ///
    /// # Errors
    /// When no world is up, or the file is damaged.
    pub(crate) fn read(dir: &Dir) -> anyhow::Result<Self> {
        let none = || format!("no world is up in {}; start one with `playground up`", dir.path().display());
        if dir.lock(Duration::ZERO).is_ok() {
            bail!(none());
        }
        let text = fs::read(dir.world()).with_context(none)?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", dir.world().display()))
    }
}
