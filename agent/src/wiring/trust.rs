//! Follows the mesh config file and the revocation lists, and applies them to [`Trust`] and the state. Both are read
//! before anything is served. An unusable file changes nothing: the last good content stays in force.

use std::path::Path;
use std::sync::Arc;

use isthmus_identity::trust::Options;
use isthmus_identity::{Revocations, Trust};
use isthmus_rt::file::{Content, Follow};
use isthmus_rt::metrics::{Family, Registry};
use isthmus_rt::task::{Tasks, compute};
use isthmus_state::State;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::config::mesh::{self, MeshTrust};
use crate::config::trust::TrustConfig;

/// Metrics of the followed files.
#[derive(Debug, Default)]
struct Metrics {
    loads: Family<Load, Counter>,
    rejected: Family<File, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Load {
    file: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct File {
    file: &'static str,
}

const CRL: &str = "crl";
const MESH: &str = "mesh_config";

/// Reads the files, then follows them in `tasks`.
pub(crate) fn start(config: &TrustConfig, state: &State, registry: &Registry, tasks: &Tasks) -> Trust {
    let metrics = Metrics::register(registry);
    let options = Options { key_exchange: config.key_exchange, revocable: config.crl.is_some() };
    let trust = Trust::new(options);
    let mut mesh = MeshFile {
        config: config.clone(),
        trust: trust.clone(),
        state: state.clone(),
        good: false,
        metrics: Arc::clone(&metrics),
    };
    let mut follow = Follow::new(&config.mesh_config);
    mesh.apply(&config.mesh_config, follow.read_if_changed().unwrap_or(&Content::Missing));
    tasks.spawn("mesh config", async move {
        loop {
            let path = follow.path().to_owned();
            mesh.apply(&path, follow.changed().await);
        }
    });
    if let Some(path) = &config.crl {
        let mut lists = CrlFile { good: false, seen: false, metrics };
        let mut follow = Follow::new(path);
        if let Some(found) = lists.read(path, follow.read_if_changed().unwrap_or(&Content::Missing)) {
            trust.set_revocations(found);
        }
        let trust = trust.clone();
        tasks.spawn("revocation lists", async move {
            loop {
                let path = follow.path().to_owned();
                if let Some(found) = lists.read(&path, follow.changed().await) {
                    let trust = trust.clone();
                    // Off the runtime: certificates that a list mentions have their signatures verified.
                    let ended = compute("revocations", move || trust.set_revocations(found)).await;
                    if let Some(peers @ 1..) = ended {
                        tracing::warn!(path = %path.display(), peers, "closed connections to peers whose certificates were revoked");
                    }
                }
            }
        });
    }
    trust
}

/// The mesh config file.
struct MeshFile {
    config: TrustConfig,
    trust: Trust,
    state: State,
    /// Whether the file was read.
    good: bool,
    metrics: Arc<Metrics>,
}

impl MeshFile {
    fn apply(&mut self, path: &Path, content: &Content) {
        let found = match content {
            // Its loss must not change who is trusted: it may have bound a trust domain to roots of its own.
            Content::Missing if self.good => Err("the file was removed".to_owned()),
            Content::Missing => Ok(MeshTrust::default()),
            Content::Unreadable(error) => Err(error.clone()),
            Content::Bytes(bytes) => {
                mesh::trust(&String::from_utf8_lossy(bytes)).map_err(|error| error.to_string())
            }
        };
        self.metrics.loaded(MESH, found.is_ok());
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "mesh config cannot be used, the last good trust domains and roots stay in force");
                return;
            }
        };
        self.good |= *content != Content::Missing;
        let domains = self.config.domains(&found);
        if *content != Content::Missing || !domains.aliases().is_empty() {
            let aliases: Vec<_> = domains.aliases().iter().map(ToString::to_string).collect();
            let mesh = domains.mesh().map(tracing::field::display);
            tracing::info!(path = %path.display(), trust_domain = mesh, ?aliases, roots = found.roots.len(), "trust domains and roots applied");
        }
        self.trust.set_domains(domains.clone(), found.roots);
        self.state.set_trust_domains(domains);
    }
}

/// The file of revocation lists.
struct CrlFile {
    /// Whether the lists in force were read from the file.
    good: bool,
    /// Whether there has been a file.
    seen: bool,
    metrics: Arc<Metrics>,
}

impl CrlFile {
    /// The lists to put in force; `None` when those in force stay.
    fn read(&mut self, path: &Path, content: &Content) -> Option<Revocations> {
        let path = path.display();
        let found = match content {
            // A file that is replaced is missing for a moment, and its loss does not undo a revocation: an empty file does.
            Content::Missing if self.seen => {
                tracing::warn!(%path, "revocation list was removed, what it said stays in force; an empty file revokes nothing");
                return None;
            }
            Content::Missing => {
                self.metrics.loaded(CRL, true);
                tracing::warn!(%path, "revocation list does not exist, no certificate is treated as revoked; check CRL_PATH");
                return Some(Revocations::None);
            }
            Content::Unreadable(error) => Err(error.clone()),
            Content::Bytes(bytes) => Revocations::parse(bytes).map_err(|error| error.to_string()),
        };
        self.seen = true;
        self.metrics.loaded(CRL, found.is_ok());
        match found {
            Ok(found) => {
                self.good = true;
                tracing::info!(%path, lists = found.len(), "revocation lists applied");
                Some(found)
            }
            Err(error) if self.good => {
                tracing::error!(%path, %error, "revocation lists cannot be used, the last good ones stay in force");
                None
            }
            Err(error) => {
                tracing::error!(
                    %path, %error,
                    "revocation lists cannot be used and none were loaded before: no mutual TLS connection is accepted or made \
                     until CRL_PATH is valid"
                );
                Some(Revocations::Unknown(format!("{path}: {error}")))
            }
        }
    }
}

// === impl Metrics ===

impl Metrics {
    fn register(registry: &Registry) -> Arc<Self> {
        let metrics = Self::default();
        registry.register(
            "isthmus_trust_file_loads",
            "Loads of followed trust files (mesh config, CRL) by result",
            metrics.loads.clone(),
        );
        registry.register(
            "isthmus_trust_file_rejected",
            "1 while the current content of the trust file is rejected, 0 otherwise",
            metrics.rejected.clone(),
        );
        Arc::new(metrics)
    }

    fn loaded(&self, file: &'static str, good: bool) {
        let result = if good { "ok" } else { "error" };
        self.loads.get_or_create(&Load { file, result }).inc();
        self.rejected.get_or_create(&File { file }).set(i64::from(!good));
    }
}

#[cfg(test)]
mod tests;
