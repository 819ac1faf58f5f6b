//! Commands that only read what the world wrote: pods and logs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::dir::Dir;
use crate::output;
use crate::world::{RunningWorld, access, table};
use playground_node::kubelet::Record;

/// Lists the pods.
pub(crate) fn status(dir: &Dir, json: bool) -> anyhow::Result<ExitCode> {
    let world = RunningWorld::read(dir)?;
    let pods = Record::all(&dir.all_pods())?;
    if json {
        let report =
            serde_json::json!({ "topology": world.topology, "clusters": world.clusters, "pods": pods });
        output::line(format_args!("{report:#}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format_args!("topology: {}", world.topology))?;
    let mut rows =
        vec![["CLUSTER", "NAMESPACE", "POD", "NODE", "ADDRESS", "READY", "STATUS"].map(str::to_owned)];
    rows.extend(pods.into_iter().map(|pod| {
        let ready = if pod.ready { "yes" } else { "no" };
        let status =
            if pod.message.is_empty() { pod.phase } else { format!("{}: {}", pod.phase, pod.message) };
        [pod.cluster, pod.namespace, pod.name, pod.node, pod.ip, ready.to_owned(), status]
    }));
    output::text(table::render(&rows))?;
    for cluster in &world.clusters {
        output::line(access(cluster))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a log, or what has one.
pub(crate) fn logs(dir: &Dir, component: Option<&str>) -> anyhow::Result<ExitCode> {
    let all = named(dir)?;
    let Some(component) = component else {
        for (name, _) in &all {
            output::line(name)?;
        }
        return Ok(ExitCode::SUCCESS);
    };
    let exact = all.iter().find(|(name, _)| name == component);
    let Some((_, path)) = exact.or_else(|| all.iter().find(|(name, _)| name.starts_with(component))) else {
        let names: Vec<_> = all.into_iter().map(|(name, _)| name).collect();
        bail!("there is no log of {component}; there are: {}", names.join(", "));
    };
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    output::copy(&mut file).with_context(|| format!("cannot print {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Every log as `<cluster>/<component>`, sorted.
fn named(dir: &Dir) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut all = Vec::new();
    let folders = fs::read_dir(dir.logs()).with_context(|| format!("no logs in {}", dir.logs().display()))?;
    for folder in folders {
        let folder = folder?.path();
        let Some(cluster) = folder.file_name().filter(|_| folder.is_dir()) else { continue };
        for file in fs::read_dir(&folder)? {
            let file = file?.path();
            if let Some(name) = file.file_stem() {
                all.push((format!("{}/{}", cluster.display(), name.display()), file));
            }
        }
    }
    all.sort();
    Ok(all)
}
