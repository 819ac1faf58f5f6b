//! What is still missing until the world works. Each question is asked again and again by the caller.

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

use super::agents;
use super::clusters::Clusters;
use super::process::tail;
use crate::plan::Cluster;
use playground_k8s::manifest::object;

/// What is missing, why, and whose log may tell more.
#[derive(Debug)]
pub(super) struct Missing {
    what: String,
    why: String,
    log: Option<PathBuf>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)?;
        match &self.log {
            Some(log) => write!(f, "\n  last lines of {}:{}", log.display(), tail(log)),
            None => Ok(()),
        }
    }
}

type Answer = anyhow::Result<Option<Missing>>;

/// An API server that does not answer.
pub(super) async fn apis(world: &Clusters<'_>) -> Answer {
    for cluster in &world.plan.clusters {
        if let Err(error) = world.client(cluster)?.list("/api/v1/namespaces").await {
            let log = Some(world.dir.log(&cluster.name, "apiserver"));
            return Ok(Some(Missing {
                what: format!("API server of {}", cluster.name),
                why: error.to_string(),
                log,
            }));
        }
    }
    Ok(None)
}

/// A pod that is not there, not ready, or not in the mesh although it should be.
pub(super) async fn pods(world: &Clusters<'_>) -> Answer {
    for cluster in &world.plan.clusters {
        let pods = world.client(cluster)?.list("/api/v1/pods").await?;
        let wanted = wanted_pods(world, cluster).await?;
        if let Some(pod) = pods.iter().find(|pod| !object::has_condition(pod, "Ready")) {
            return Ok(Some(pod_missing(world, cluster, pod, &waiting(pod))));
        }
        if pods.len() < wanted {
            let what = format!("pods of {}", cluster.name);
            let log = Some(world.dir.log(&cluster.name, "apiserver"));
            return Ok(Some(Missing { what, why: format!("{} of {wanted} exist", pods.len()), log }));
        }
        for pod in enrolled(world, cluster, &pods).await? {
            if object::annotation(&pod, "ambient.istio.io/redirection") != Some("enabled") {
                return Ok(Some(pod_missing(world, cluster, &pod, "it is not in the mesh yet")));
            }
        }
    }
    Ok(None)
}

/// An agent that does not know what it must.
pub(super) async fn mesh(world: &Clusters<'_>) -> Answer {
    for cluster in &world.plan.clusters {
        let pods = world.client(cluster)?.list("/api/v1/pods").await?;
        let members = enrolled(world, cluster, &pods).await?;
        for agent in pods.iter().filter(|pod| object::label(pod, "app") == Some("ztunnel")) {
            let why = match agents::dump(world, cluster, agent).await {
                Err(error) => Some(format!("{error:#}")),
                Ok(dump) => unknown(cluster, &dump, &members),
            };
            if let Some(why) = why {
                return Ok(Some(pod_missing(world, cluster, agent, &why)));
            }
        }
    }
    Ok(None)
}

/// What an agent does not know: a workload of its own cluster as reachable through HBONE, or the door to the other one.
fn unknown(cluster: &Cluster, dump: &Value, members: &[Value]) -> Option<String> {
    let workloads = object::list(dump, "/workloads");
    for pod in members {
        let uid = format!("{}//Pod/{}/{}", cluster.name, object::namespace(pod), object::name(pod));
        let known = workloads.iter().find(|workload| workload["uid"] == uid.as_str());
        match known {
            None => return Some(format!("workload {uid} is not known")),
            Some(known) if known["protocol"] != "HBONE" || known["status"] != "Healthy" => {
                return Some(format!("workload {uid} is {} by {}", known["status"], known["protocol"]));
            }
            Some(_) => {}
        }
    }
    let door =
        workloads.iter().any(|workload| object::text(workload, "/uid").contains("/SplitHorizonWorkload/"));
    (!door).then(|| "no workload of the other network is known".to_owned())
}

/// The pods that belong to the mesh: by their namespace's label, unless their own says otherwise.
pub(super) async fn enrolled(
    world: &Clusters<'_>,
    cluster: &Cluster,
    pods: &[Value],
) -> anyhow::Result<Vec<Value>> {
    const MODE: &str = "istio.io/dataplane-mode";
    let namespaces = world.client(cluster)?.list("/api/v1/namespaces").await?;
    let ambient = |name: &str| {
        let found = namespaces.iter().find(|namespace| object::name(namespace) == name);
        found.and_then(|namespace| object::label(namespace, MODE)) == Some("ambient")
    };
    let member = |pod: &&Value| match object::label(pod, MODE) {
        Some(own) => own == "ambient",
        None => ambient(object::namespace(pod)),
    };
    Ok(pods.iter().filter(member).cloned().collect())
}

/// How many pods the cluster's Deployments and DaemonSets ask for.
async fn wanted_pods(world: &Clusters<'_>, cluster: &Cluster) -> anyhow::Result<usize> {
    let client = world.client(cluster)?;
    let deployments = client.list("/apis/apps/v1/deployments").await?;
    let replicas =
        |object: &Value| usize::try_from(object["spec"]["replicas"].as_u64().unwrap_or(1)).unwrap_or(1);
    let daemons = client.list("/apis/apps/v1/daemonsets").await?.len() * cluster.nodes.len();
    Ok(deployments.iter().map(replicas).sum::<usize>() + daemons)
}

fn pod_missing(world: &Clusters<'_>, cluster: &Cluster, pod: &Value, why: &str) -> Missing {
    let own = world.dir.log(&cluster.name, object::name(pod));
    let kubelet = world.dir.log(&cluster.name, &format!("kubelet-{}", object::text(pod, "/spec/nodeName")));
    let log = [own, kubelet].into_iter().find(|log| log.metadata().is_ok_and(|meta| meta.len() > 0));
    Missing { what: format!("pod {}/{}", cluster.name, object::name(pod)), why: why.to_owned(), log }
}

/// Why a pod is not ready, as its kubelet says.
fn waiting(pod: &Value) -> String {
    let waiting = object::list(pod, "/status/containerStatuses").iter().find_map(|status| {
        let waiting = status.pointer("/state/waiting")?;
        let (reason, message) = (object::text(waiting, "/reason"), object::text(waiting, "/message"));
        (!reason.is_empty()).then(|| format!("{reason} {message}"))
    });
    waiting.unwrap_or_else(|| "it is not ready".to_owned())
}
