//! What a run shows: requests from inside the mesh and from outside of it, and what the agents know.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::join_all;
use isthmus_sys::socket::Sockets;
use std::sync::Arc;
use tokio::process::Command;

use super::agents;
use super::clusters::Clusters;
use super::progress::Progress;
use super::report::{Report, Requests};
use super::table;
use super::wire::Wire;
use crate::plan::{Cluster, Topology};
use playground_k8s::manifest::object;
use playground_node::program;
use playground_workloads::request::Outcome;

/// What every client requests.
const URL: &str = "http://helloworld.sample:5000/hello";
/// Requests of each `sleep`.
const NUMBER: usize = 20;
/// Requests of each client outside of the mesh.
const PLAIN: usize = 5;
/// No list of requests takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does everything and reports.
pub(super) async fn run(world: &Clusters<'_>, progress: &Progress) -> anyhow::Result<Report> {
    let multi = world.plan.topology == Topology::MultiPrimary;
    let topology = if multi { "multi-primary" } else { "primary-remote" };
    let mut report = Report { topology: topology.to_owned(), ..Report::default() };
    let clusters = &world.plan.clusters;
    let wire = Wire::open(world)?;
    for (pod, number) in [("sleep", NUMBER), ("client", PLAIN)] {
        let all = join_all(clusters.iter().map(|cluster| ask(world, cluster, pod, number))).await;
        for (cluster, requests) in clusters.iter().zip(all) {
            let requests = requests.with_context(|| format!("requests from {}/{pod}", cluster.name))?;
            judge(&mut report, cluster, pod, &requests);
            report.requests.push(requests);
        }
    }
    wire.judge(&mut report);
    for cluster in clusters {
        know(world, cluster, &mut report).await?;
        no_route(world, cluster, &mut report).await?;
    }
    report.pass = report.checks.iter().all(|check| check.pass);
    report.seconds = progress.seconds();
    Ok(report)
}

/// Sends requests from inside a pod.
async fn ask(world: &Clusters<'_>, cluster: &Cluster, pod: &str, number: usize) -> anyhow::Result<Requests> {
    let record = agents::record(world, cluster, pod)?;
    let pid = record.pid.with_context(|| format!("it does not run: {}", record.message))?;
    let mut command = Command::from(program::own());
    command.args(["enter", "--pid", &pid.to_string(), "--", program::OWN]);
    command.args(["request", URL, "--json", "--number", &number.to_string()]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output =
        tokio::time::timeout(PATIENCE, command.output()).await.context("no end of the requests")??;
    let lines = String::from_utf8_lossy(&output.stdout);
    let outcomes: Vec<Outcome> =
        lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("the client's output")?;
    if outcomes.len() != number {
        bail!(
            "{} of {number} requests were reported: {}",
            outcomes.len(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(Requests::of(format!("{}/{}", cluster.name, record.name), URL, &outcomes))
}

/// In the mesh both clusters answer; outside of it only the own one does.
fn judge(report: &mut Report, cluster: &Cluster, pod: &str, requests: &Requests) {
    let (v1, v2) = (requests.version("v1"), requests.version("v2"));
    let detail = format!("{} sent, {} failed, {v1} by v1, {v2} by v2", requests.sent, requests.failed);
    let all = requests.failed == 0 && v1 + v2 == requests.sent;
    if pod == "sleep" {
        let name = format!("{}/sleep is answered by both clusters", cluster.name);
        return report.check(name, all && v1 > 0 && v2 > 0, detail);
    }
    let own = if cluster.name == "east" { v1 } else { v2 };
    let name = format!("{}/client, outside of the mesh, is answered by its own cluster only", cluster.name);
    report.check(name, all && own == requests.sent, detail);
}

/// The workload table, and its row for the other network.
async fn know(world: &Clusters<'_>, cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    let agents = world
        .client(cluster)?
        .list("/api/v1/namespaces/istio-system/pods?labelSelector=app%3Dztunnel")
        .await?;
    let agent = agents.first().with_context(|| format!("no agent in {}", cluster.name))?;
    let rows = table::workloads(&agents::dump(world, cluster, agent).await?, "sample");
    let door = rows.iter().find(|row| row.name.contains("/SplitHorizonWorkload/"));
    let detail = door.map_or_else(|| "no row".to_owned(), |row| row.name.clone());
    report.check(format!("{} knows the other network by its gateway", cluster.name), door.is_some(), detail);
    let plain: Vec<_> =
        rows.iter().filter(|row| row.protocol != "HBONE").map(|row| row.name.clone()).collect();
    let detail = if plain.is_empty() {
        "all by HBONE".to_owned()
    } else {
        format!("not by HBONE: {}", plain.join(", "))
    };
    report.check(format!("every workload of {} is in the mesh", cluster.name), plain.is_empty(), detail);
    report.workloads.insert(cluster.name.clone(), rows);
    Ok(())
}

/// Nothing but the gateways joins the pod networks: a node cannot reach a pod of the other cluster.
async fn no_route(world: &Clusters<'_>, cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    let node = cluster.nodes.first().context("a cluster without nodes")?;
    let netns = world.namespaces.nodes.get(&node.name).context("no namespace")?;
    for other in world.plan.clusters.iter().filter(|other| other.name != cluster.name) {
        let pods = world
            .client(other)?
            .list("/api/v1/namespaces/sample/pods?labelSelector=app%3Dhelloworld")
            .await?;
        let pod = pods.first().with_context(|| format!("no helloworld in {}", other.name))?;
        let to = SocketAddr::new(object::text(pod, "/status/podIP").parse()?, 5000);
        let tried =
            Sockets::in_netns(Arc::new(netns.clone())).connect(to, None, Duration::from_secs(2)).await;
        let detail = tried.as_ref().map_or_else(|error| error.to_string(), |_| format!("{to} answers"));
        report.check(
            format!("{} has no route to the pods of {}", node.name, other.name),
            tried.is_err(),
            detail,
        );
    }
    Ok(())
}
