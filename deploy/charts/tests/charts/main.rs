//! The charts. The ordinary suite reads their values, schemas and templates as text; with the feature
//! `kubernetes` they are rendered by the helm that `HELM` names, compared with golden files, and offered to the API server
//! that `KUBE_APISERVER` names, with the etcd of `ETCD`. After a wanted change of a chart: `UPDATE_GOLDEN=1`.

#[cfg(feature = "kubernetes")]
mod api_server;
#[cfg(feature = "kubernetes")]
mod dry_run;
#[cfg(feature = "kubernetes")]
mod helm;
#[cfg(feature = "kubernetes")]
mod rendered;
mod schema;
mod values;

use std::path::{Path, PathBuf};

/// Every chart.
const CHARTS: [&str; 3] = ["agent", "node", "gateway"];

/// The folder of a chart.
fn folder(chart: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(chart)
}

/// A file of a chart.
fn read(chart: &str, file: &str) -> String {
    let path = folder(chart).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
