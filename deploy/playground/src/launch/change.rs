//! Commands that change a running world through its API servers, wait until pods, control planes and agents have
//! followed, and print what was pushed to the agents.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::Sockets;
use serde_json::Value;
use tokio::time::Instant;

use super::inside;
use crate::dir::Dir;
use crate::objects::gateway;
use crate::output;
use crate::plan::{Cluster, Plan, SYSTEM, Topology};
use crate::world::RunningWorld;
use playground_istiod::is_followed;
use playground_istiod::pushes::{self, Pushes};
use playground_k8s::client::Client;
use playground_k8s::manifest::{self, object};
use playground_node::kubelet::Record;
use playground_workloads::http;

/// Where an istiod serves its push log.
const LOG: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15014);
/// Without a new push for so long, none is expected any more.
const QUIET: Duration = Duration::from_millis(300);
const STEP: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(3);

/// What is to be changed where.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ChangeArgs {
    /// A manifest, or a folder of them. Of a folder with `common/`, `east/` or `west/` each cluster gets its own part.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) filename: PathBuf,
    /// `east`, `west` or `both`.
    #[arg(long, default_value = "both")]
    pub(crate) cluster: String,
    /// Seconds that pods and agents may take to follow.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) wait: u64,
}

/// What is to become of the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intent {
    /// They are to be there.
    Apply,
    /// They are not to be there.
    Delete,
}

/// Changes the clusters; fails when a pod, a control plane or an agent has not followed in time.
pub(crate) fn change(dir: &Dir, args: &ChangeArgs, intent: Intent) -> anyhow::Result<ExitCode> {
    let running = RunningWorld::read(dir)?;
    let topology: Topology =
        clap::ValueEnum::from_str(&running.topology, false).map_err(anyhow::Error::msg)?;
    let plan = Plan::new(topology);
    if args.cluster != "both" && !running.clusters.contains(&args.cluster) {
        bail!("there is no cluster {}; there are: {}", args.cluster, running.clusters.join(", "));
    }
    let chosen = plan.clusters.iter().filter(|one| args.cluster == "both" || args.cluster == one.name);
    let mut manifests = Vec::new();
    for cluster in chosen {
        let objects = manifest::change_for(&args.filename, &cluster.name, &running.clusters)?;
        manifests.push((cluster, objects));
    }
    let istiods = istiods(dir, &running, &plan)?;
    inside::enter(running.pid, &["user", "net"])?;
    let open = |(cluster, pid): (String, i32)| {
        let netns = Netns::open(Path::new(&format!("/proc/{pid}/ns/net")))?;
        anyhow::Ok(Istiod { cluster, netns: Arc::new(netns) })
    };
    let istiods: Vec<Istiod> = istiods.into_iter().map(open).collect::<Result<_, _>>()?;
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    crate::block_on(async {
        let mut parts = Vec::new();
        for (cluster, objects) in manifests {
            let client = Client::from_kubeconfig(&dir.kubeconfig(&cluster.name)).await?;
            parts.push(ClusterChange { cluster, objects, client });
        }
        let mut before = BTreeMap::new();
        for istiod in &istiods {
            before.insert(istiod.cluster.clone(), istiod.pushes().await?.number);
        }
        let (mut written, mut changed) = (Vec::new(), Vec::new());
        for part in &parts {
            changed.push((part, part.change(dir, intent, &mut written).await?));
        }
        for (part, objects) in &changed {
            part.roll_out(objects, intent, deadline, &mut written).await?;
        }
        let mut all_well = true;
        for istiod in &istiods {
            let (pushes, is_settled) = istiod.settle(&written, deadline).await?;
            all_well &= is_settled;
            print_pushes(&pushes, before.get(&istiod.cluster).copied().unwrap_or_default())?;
        }
        Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// The control planes that run, each with a process of its pod as we number it.
fn istiods(dir: &Dir, running: &RunningWorld, plan: &Plan) -> anyhow::Result<Vec<(String, i32)>> {
    let primaries = plan.clusters.iter().filter(|cluster| cluster.primary);
    let found = primaries.map(|cluster| {
        let record = Record::find(&dir.all_pods(), &format!("{}/istiod", cluster.name))?;
        let inner = record.pid.with_context(|| format!("istiod of {} does not run", cluster.name))?;
        anyhow::Ok((cluster.name.clone(), inside::outer_pid(running.pid, inner)?))
    });
    found.collect()
}

/// One version of one object that a control plane must have read.
#[derive(Debug)]
struct Written {
    cluster: String,
    kind: String,
    version: u64,
}

impl Written {
    /// Nothing when control planes do not care.
    fn of(cluster: &Cluster, stored: &Value) -> Option<Self> {
        let version = object::text(stored, "/metadata/resourceVersion").parse().ok()?;
        let kind = object::text(stored, "/kind").to_owned();
        is_followed(stored, SYSTEM).then(|| Self { cluster: cluster.name.clone(), kind, version })
    }

    fn is_read(&self, pushes: &Pushes) -> bool {
        let read = pushes.read.get(&self.cluster).and_then(|kinds| kinds.get(&self.kind));
        read.is_some_and(|version| *version >= self.version)
    }
}

/// What changes in one cluster.
struct ClusterChange<'a> {
    cluster: &'a Cluster,
    objects: Vec<Value>,
    client: Client,
}

// === impl ClusterChange ===

impl ClusterChange<'_> {
    /// Writes the objects, and what controllers outside of the API server would make of them; gives all of them.
    async fn change(
        &self,
        dir: &Dir,
        intent: Intent,
        written: &mut Vec<Written>,
    ) -> anyhow::Result<Vec<Value>> {
        let context = gateway::GatewayContext { dir, cluster: self.cluster };
        let mut objects = Vec::new();
        for one in &self.objects {
            objects.extend(std::iter::once(one.clone()).chain(gateway::expand(context, one)));
        }
        if intent == Intent::Delete {
            objects.reverse();
        }
        for one in &objects {
            let stored = match intent {
                Intent::Apply => Some(self.client.apply(one).await?),
                Intent::Delete => self.client.delete(&path(one)?).await?,
            };
            let done = match (intent, &stored) {
                (Intent::Apply, _) => "applied",
                (Intent::Delete, Some(_)) => "deleted",
                (Intent::Delete, None) => "is not there",
            };
            output::line(format_args!(
                "{}: {}/{} {done}",
                self.cluster.name,
                object::text(one, "/kind"),
                object::name(one)
            ))?;
            written.extend(stored.and_then(|stored| Written::of(self.cluster, &stored)));
        }
        Ok(objects)
    }

    /// Waits until the pods of what was changed are as they should be.
    async fn roll_out(
        &self,
        objects: &[Value],
        intent: Intent,
        deadline: Instant,
        written: &mut Vec<Written>,
    ) -> anyhow::Result<()> {
        let deployments = objects.iter().filter(|one| object::text(one, "/kind") == "Deployment");
        for deployment in deployments {
            let wanted = match intent {
                Intent::Apply => deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1),
                Intent::Delete => 0,
            };
            let pods = self.pods_of(deployment, wanted, deadline).await?;
            written.extend(pods.iter().filter_map(|pod| Written::of(self.cluster, pod)));
        }
        Ok(())
    }

    async fn pods_of(&self, owner: &Value, wanted: u64, deadline: Instant) -> anyhow::Result<Vec<Value>> {
        let namespace = object::namespace(owner);
        let selector = object::string_map(owner, "/spec/selector/matchLabels");
        let collection = format!("/api/v1/namespaces/{namespace}/pods");
        loop {
            let mut pods = self.client.list(&collection).await?;
            pods.retain(|pod| object::has_labels(pod, &selector));
            let is_good = |pod: &Value| object::has_condition(pod, "Ready") && !object::is_deleting(pod);
            if u64::try_from(pods.len()) == Ok(wanted) && pods.iter().all(is_good) {
                return Ok(pods);
            }
            if Instant::now() > deadline {
                let (name, cluster) = (object::name(owner), &self.cluster.name);
                bail!(
                    "{cluster}: the pods of {name} are not as they should be: {wanted} ready, nothing else"
                );
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

fn path(one: &Value) -> anyhow::Result<String> {
    let kind = object::kind(one).context("an object of an unknown kind")?;
    let namespace = if object::namespace(one).is_empty() { "default" } else { object::namespace(one) };
    Ok(kind.path(namespace, object::name(one)))
}

/// A running control plane.
struct Istiod {
    cluster: String,
    netns: Arc<Netns>,
}

// === impl Istiod ===

impl Istiod {
    /// Its push log.
    async fn pushes(&self) -> anyhow::Result<Pushes> {
        let exchange = async {
            let stream = Sockets::in_netns(Arc::clone(&self.netns)).connect(LOG, None, PATIENCE).await?;
            http::get(stream, "localhost:15014", pushes::PATH).await
        };
        let what = || format!("cannot read the push log of istiod of {}", self.cluster);
        let answer = tokio::time::timeout(PATIENCE, exchange).await.with_context(what)?.with_context(what)?;
        serde_json::from_slice(&answer.body).with_context(what)
    }

    /// Waits until it has read everything, has pushed it, and its agents have acknowledged it; and whether that is so.
    async fn settle(&self, written: &[Written], deadline: Instant) -> anyhow::Result<(Pushes, bool)> {
        let mut since = (0, Instant::now());
        loop {
            let pushes = self.pushes().await?;
            if since.0 != pushes.number {
                since = (pushes.number, Instant::now());
            }
            let is_settled = pushes.is_settled() && written.iter().all(|one| one.is_read(&pushes));
            if (is_settled && since.1.elapsed() >= QUIET) || Instant::now() > deadline {
                return Ok((pushes, is_settled));
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

/// Prints what was pushed to connected agents after a version.
fn print_pushes(pushes: &Pushes, before: u64) -> io::Result<()> {
    let clusters: BTreeSet<&str> = pushes.clients.iter().map(|client| client.cluster.as_str()).collect();
    for cluster in clusters {
        let clients: Vec<_> = pushes.clients.iter().filter(|client| client.cluster == cluster).collect();
        let news = news(pushes, cluster, before);
        if news.is_empty() {
            output::line(format_args!("{cluster}: nothing was pushed to {} clients", clients.len()))?;
            continue;
        }
        output::line(format_args!("{cluster}: pushed to {} clients", clients.len()))?;
        for (name, what) in news {
            output::line(format_args!("  {what:<8} {name}"))?;
        }
        let behind = |client: &&&pushes::Client| client.told < pushes.number || client.unanswered > 0;
        for client in clients.iter().filter(behind) {
            output::line(format_args!("  not acknowledged by {}", client.id))?;
        }
    }
    Ok(())
}

/// What has become of each resource, all changes together.
fn news<'a>(pushes: &'a Pushes, cluster: &str, before: u64) -> BTreeMap<&'a str, &'static str> {
    let mut news: BTreeMap<&str, &'static str> = BTreeMap::new();
    for change in pushes.changes.iter().filter(|one| one.cluster == cluster && one.number > before) {
        for name in &change.added {
            let was_gone = news.get(name.as_str()) == Some(&"gone");
            news.insert(name, if was_gone { "changed" } else { "new" });
        }
        for name in &change.changed {
            news.entry(name).or_insert("changed");
        }
        for name in &change.removed {
            match news.get(name.as_str()) {
                Some(&"new") => _ = news.remove(name.as_str()),
                _ => _ = news.insert(name, "gone"),
            }
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use playground_istiod::pushes::Change;

    #[test]
    fn changes_are_told_together() {
        let change = |number, added: &[&str], changed: &[&str], removed: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let (added, changed, removed) = (owned(added), owned(changed), owned(removed));
            Change { number, cluster: "east".to_owned(), added, changed, removed }
        };
        let changes = vec![
            change(1, &["old"], &[], &[]),
            change(2, &["a", "b"], &["c"], &["d", "e"]),
            change(3, &["d"], &["a"], &["b", "c"]),
        ];
        let pushes = Pushes { changes, ..Pushes::default() };
        let told: Vec<_> = news(&pushes, "east", 1).into_iter().collect();
        assert_eq!(told, [("a", "new"), ("c", "gone"), ("d", "changed"), ("e", "gone")]);
        assert!(news(&pushes, "west", 0).is_empty());
    }
}
