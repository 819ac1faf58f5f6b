//! Starting the clusters in order, each step with a bounded wait that names what is missing.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

use super::clusters::Clusters;
use super::progress::Progress;
use super::{Options, ready};

/// How long each step may take.
const API: Duration = Duration::from_secs(15);
const PODS: Duration = Duration::from_secs(45);
const MESH: Duration = Duration::from_secs(30);
/// Between two looks at what is missing.
const STEP: Duration = Duration::from_millis(50);

/// Starts everything and waits until it works.
pub(super) async fn start(
    clusters: &mut Clusters<'_>,
    options: &Options,
    progress: &Progress,
) -> anyhow::Result<()> {
    let plan = clusters.plan;
    progress.stage("API servers", "one per cluster");
    for cluster in &plan.clusters {
        clusters.start_api(cluster)?;
    }
    until(clusters, "API servers", API, ready::apis).await?;
    progress.stage("nodes", "kubelets and service proxies");
    for cluster in &plan.clusters {
        let created = clusters.create_base(cluster).await;
        created.with_context(|| format!("objects of cluster {}", cluster.name))?;
        for node in &cluster.nodes {
            clusters.start_node(cluster, node, options)?;
        }
    }
    progress.stage("control planes", "istiods and name servers");
    until(clusters, "control planes", PODS, ready::pods).await?;
    progress.stage("pods", &format!("agents, gateways, and {}", options.manifests.display()));
    for cluster in &plan.clusters {
        let applied = clusters.apply_manifests(cluster, options).await;
        applied.with_context(|| format!("objects of cluster {}", cluster.name))?;
    }
    until(clusters, "pods", PODS, ready::pods).await?;
    progress.stage("mesh", "every agent knows every workload");
    until(clusters, "mesh", MESH, ready::mesh).await
}

/// Asks until nothing is missing; after `time`, fails with what is, and the last lines of its log.
async fn until<F>(clusters: &mut Clusters<'_>, what: &str, time: Duration, missing: F) -> anyhow::Result<()>
where
    F: AsyncFn(&Clusters<'_>) -> anyhow::Result<Option<ready::Missing>>,
{
    let deadline = Instant::now() + time;
    loop {
        clusters.check_processes()?;
        let Some(missing) = missing(clusters).await? else { return Ok(()) };
        if Instant::now() > deadline {
            bail!("{what}: not ready after {time:?}: {missing}");
        }
        tokio::time::sleep(STEP).await;
    }
}
