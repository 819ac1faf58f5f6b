//! What the agents know, asked at their admin ports, which listen only inside their own namespaces.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::Sockets;
use serde_json::Value;

use super::clusters::Clusters;
use crate::plan::Cluster;
use playground_k8s::manifest::object;
use playground_node::kubelet::Record;
use playground_workloads::http;

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const PATIENCE: Duration = Duration::from_secs(3);

/// The agent's whole state as it tells it.
pub(super) async fn dump(world: &Clusters<'_>, cluster: &Cluster, agent: &Value) -> anyhow::Result<Value> {
    let record = record(world, cluster, object::name(agent))?;
    let netns = Arc::new(netns(&record)?);
    let exchange = async {
        let stream = Sockets::in_netns(netns).connect(ADMIN, None, PATIENCE).await?;
        http::get(stream, "localhost:15000", "/config_dump").await
    };
    let answer =
        tokio::time::timeout(PATIENCE, exchange).await.context("the admin port does not answer")??;
    if answer.status != 200 {
        bail!("/config_dump answers with status {}", answer.status);
    }
    serde_json::from_slice(&answer.body).context("/config_dump is no JSON")
}

/// What the kubelet wrote down about a pod, by the beginning of its name.
pub(super) fn record(world: &Clusters<'_>, cluster: &Cluster, pod: &str) -> anyhow::Result<Record> {
    Record::find(&world.dir.all_pods(), &format!("{}/{pod}", cluster.name))
}

/// The namespace of a running pod.
pub(super) fn netns(record: &Record) -> anyhow::Result<Netns> {
    let pid = record.pid.with_context(|| format!("pod {} does not run: {}", record.name, record.message))?;
    Ok(Netns::open(Path::new(&format!("/proc/{pid}/ns/net")))?)
}
