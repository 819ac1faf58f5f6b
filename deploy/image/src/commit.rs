//! Which commit is built, and when it was made: the only clock that the image knows.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};

/// Revision of a build without a repository, as in a container build.
const REVISION: &str = "ISTHMUS_GIT_REVISION";
/// Time of a build without a repository (reproducible-builds.org/specs/source-date-epoch).
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// A commit.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    /// Its hash, with `-modified` when files differ from it.
    pub(crate) revision: String,
    /// Its time in seconds since 1970.
    pub(crate) time: u64,
}

impl Commit {
    /// The commit that is checked out, or what the environment says.
    ///
    /// # Errors
    /// When files differ from it and that is not allowed, and when neither git nor the environment knows it.
    pub(crate) fn read(workspace: &Path, modified: bool) -> Result<Self> {
        let given = std::env::var(REVISION).ok().filter(|revision| !revision.trim().is_empty());
        if let Some(revision) = given {
            let time =
                std::env::var(EPOCH).with_context(|| format!("{REVISION} is set and {EPOCH} is not"))?;
            let time =
                time.trim().parse().with_context(|| format!("{EPOCH}={time} is not a number of seconds"))?;
            return Ok(Self { revision: revision.trim().to_owned(), time });
        }
        let git = |args: &[&str]| git(workspace, args);
        let revision = git(&["rev-parse", "HEAD"])
            .with_context(|| format!("no git repository here: set {REVISION} and {EPOCH}"))?;
        let time = git(&["log", "-1", "--format=%ct"])?.parse()?;
        let differs = !git(&["status", "--porcelain"])?.is_empty();
        if !differs {
            return Ok(Self { revision, time });
        }
        if !modified {
            bail!("files differ from commit {revision}: commit them, or give --modified");
        }
        Ok(Self { revision: format!("{revision}-modified"), time })
    }

    /// Its time as RFC 3339 says it.
    pub(crate) fn date(&self) -> String {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(self.time);
        humantime::format_rfc3339_seconds(time).to_string()
    }
}

fn git(workspace: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new("git").arg("-C").arg(workspace).args(args).output().context("git")?;
    ensure!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
