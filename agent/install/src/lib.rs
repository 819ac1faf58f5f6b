//! Installs the CNI plugin on a node, keeps it installed, and removes it at the end (the part of istio-cni's installer).
//! It owns the binary, the entry in the cluster's network configuration and the plugin's kubeconfig. It must not know how
//! pods are enrolled: the plugin and the node role do that.
//!
//! What it needs of the API server is in `agent/docs/permissions.md`: `get` on its own DaemonSet and on nodes, to tell an
//! upgrade from a removal, and `create` on `serviceaccounts/token` of the plugin's account, for a token that outlives the
//! pod.

pub mod config;
pub mod conflist;
pub mod entry;
mod files;
mod host;
mod kubeconfig;
mod metrics;
mod pace;
mod token;
mod upgrade;

use std::io;
use std::time::Duration;

use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain::Watch;
use isthmus_rt::ready::{BlockReady, Readiness};
use isthmus_sys::folders::Folders;
use tokio::time::Instant;

pub use crate::config::Config;
pub use crate::kubeconfig::server_url;
pub use crate::metrics::Metrics;
pub use crate::upgrade::End;

use crate::host::{CompareError, Drift, InstallError};
use crate::pace::{Next, Pace};
use crate::token::Tokens;

/// Readiness waits under this name.
pub const READY: &str = "CNI plugin installed";
/// Everything is looked at so often without a notification, and so often while a folder cannot be watched.
const LOOK: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));
/// Pauses after a failed installation.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Installs the plugin and keeps it installed until the drain begins. Readiness is blocked whenever it is not installed,
/// at first by the guard that is handed over.
///
/// # Errors
/// When the kernel cannot notify of changes.
pub async fn run(
    config: Config,
    client: Option<kube::Client>,
    metrics: Metrics,
    (readiness, blocked): (Readiness, BlockReady),
    drain: Watch,
) -> io::Result<()> {
    let folders = vec![config.bin_dir.clone(), config.net_dir.clone(), config.service_account_dir.clone()];
    let mut folders = Folders::new(folders)?;
    let (account, folder) = (config.plugin_account.clone(), config.service_account_dir.clone());
    let mut tokens = Tokens::new(client, config.namespace.clone(), account, &folder);
    host::remove_stale(&config);
    let mut installer = Installer {
        blocked: Some(blocked),
        config,
        metrics,
        readiness,
        pace: Pace::default(),
        backoff: Backoff::new(RETRY.0, RETRY.1),
        next: Instant::now(),
        installed: false,
        reported: String::new(),
    };
    loop {
        // Before the comparison, so that no change after it is missed.
        let all = folders.refresh();
        let wait = match tokens.current().await {
            Ok(token) => installer.step(token).await,
            Err(error) => {
                installer.not_installed(&format!("no token for the plugin's kubeconfig: {error}"));
                None
            }
        };
        let look = Instant::now() + if all { LOOK.0 } else { LOOK.1 };
        let until = wait.unwrap_or(look).min(look).min(tokens.next());
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            changed = folders.changed() => changed?,
            () = drain.graceful() => return Ok(()),
        }
    }
}

/// Decides whether what is installed stays for a successor, and removes it if not.
pub async fn finish(config: Config, client: Option<&kube::Client>) -> End {
    let end = match client {
        _ if config.always_remove => End::Remove("AMBIENT_DISABLE_SAFE_UPGRADE is set".to_owned()),
        Some(client) => upgrade::end(client, &config.namespace, &config.daemon_set, &config.node).await,
        None => End::Keep("there is no API server to ask whether this is an upgrade".to_owned()),
    };
    match &end {
        End::Keep(why) => tracing::info!(
            %why,
            "the CNI plugin stays installed; until the next node role runs, new pods of the mesh do not start",
        ),
        End::Remove(why) => {
            tracing::info!(%why, "removing the CNI plugin from this node");
            let failed = tokio::task::spawn_blocking(move || host::remove(&config)).await.unwrap_or_default();
            for error in failed {
                tracing::error!(%error, "the CNI plugin is not removed completely");
            }
        }
    }
    end
}

struct Installer {
    config: Config,
    metrics: Metrics,
    readiness: Readiness,
    blocked: Option<BlockReady>,
    pace: Pace,
    backoff: Backoff,
    /// No attempt before this, whatever changes: a failed one changes folders too.
    next: Instant,
    /// Whether it was installed once: what is missing after that was removed by others.
    installed: bool,
    /// The last problem that was reported. It is reported once.
    reported: String,
}

impl Installer {
    /// Compares, and installs what is missing. When to look again at the latest.
    async fn step(&mut self, token: String) -> Option<Instant> {
        let config = self.config.clone();
        let compared = blocking(move || host::compare(&config, &token)).await;
        let drift = match compared {
            Ok(drift) => drift,
            Err(CompareError::NoNetwork(error)) => {
                self.not_installed(&format!("waiting: {error}"));
                return None;
            }
            Err(error) => {
                self.not_installed(&error.to_string());
                return None;
            }
        };
        if drift.is_none() {
            self.is_installed(&drift);
            return None;
        }
        if Instant::now() < self.next {
            return Some(self.next);
        }
        if !drift.is_kubeconfig_only() {
            self.block();
            if self.installed
                && let Err(later) = self.may_repair(&drift)
            {
                return Some(later);
            }
        }
        let config = self.config.clone();
        let (drift, outcome) = blocking(move || {
            let outcome = host::install(&config, &drift);
            (drift, outcome)
        })
        .await;
        self.report(&drift, outcome)
    }

    /// Whether a repair may be done now, or when.
    fn may_repair(&mut self, drift: &Drift) -> Result<(), Instant> {
        match self.pace.next(Instant::now()) {
            Next::At(later) => Err(later),
            Next::Repair { row, warn } => {
                let file = drift.plan.network.as_deref().unwrap_or_default();
                let changed = if drift.plan.is_done() { "binary" } else { "network configuration" };
                if warn {
                    tracing::warn!(
                        file,
                        repairs = row,
                        changed,
                        "another program keeps undoing the installation of the CNI plugin, pods that start meanwhile are \
                         not in the mesh: {}",
                        advice(file),
                    );
                } else {
                    tracing::info!(
                        file,
                        changed,
                        "the installation of the CNI plugin was undone, repairing it"
                    );
                }
                Ok(())
            }
        }
    }

    fn report(&mut self, drift: &Drift, outcome: Result<(), InstallError>) -> Option<Instant> {
        match outcome {
            Ok(()) => {
                self.metrics.count("SUCCESS");
                self.is_installed(drift);
                None
            }
            Err(error) => {
                self.metrics.count(error.result());
                self.not_installed(&error.to_string());
                self.next = Instant::now() + self.backoff.next_delay();
                Some(self.next)
            }
        }
    }

    fn is_installed(&mut self, drift: &Drift) {
        self.backoff.reset();
        self.installed = true;
        self.reported.clear();
        self.metrics.ready.set(1);
        if self.blocked.take().is_none() {
            return;
        }
        for (file, reason) in &drift.plan.invalid {
            tracing::warn!(file, reason, "not a network configuration, passed over");
        }
        if !drift.plan.ignored.is_empty() {
            tracing::warn!(
                used = drift.plan.network.as_deref().unwrap_or_default(), ignored = ?drift.plan.ignored,
                "several network configurations: the first by name is used, as the container runtime does; \
                 CNI_CONF_NAME can name another",
            );
        }
        tracing::info!(
            network = drift.plan.network.as_deref().unwrap_or("stand-alone"),
            folder = %self.config.net_dir.display(), "CNI plugin installed",
        );
    }

    fn not_installed(&mut self, why: &str) {
        self.block();
        if self.reported != why {
            tracing::warn!(error = why, "the CNI plugin is not installed");
            self.reported = why.to_owned();
        }
    }

    fn block(&mut self) {
        self.metrics.ready.set(0);
        if self.blocked.is_none() {
            self.blocked = Some(self.readiness.block(READY));
        }
    }
}

/// What an operator can do about a program that rewrites the file.
fn advice(file: &str) -> &'static str {
    if file.contains("cilium") {
        "set Cilium's cni.exclusive=false, or ISTIO_OWNED_CNI_CONFIG=true here"
    } else {
        "make that program leave the file alone, or set ISTIO_OWNED_CNI_CONFIG=true here"
    }
}

/// Runs on the blocking pool. A panic there is one here.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
