//! Pods for deployments and daemon sets, and nodes for pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::store::{Key, Tx, key_of};
use crate::api::text::{random_suffix, short_hash, uuid_for};
use crate::api::verbs::{self, Context, Deletion};
use crate::manifest::{Kind, object};

/// The label that ties a pod to one state of its template.
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Makes the pods that are missing and deletes the ones that are too many.
pub(super) fn reconcile(tx: &mut Tx<'_>, context: &Context<'_>) {
    let (Some(deployments), Some(sets)) = (Kind::named("Deployment"), Kind::named("DaemonSet")) else {
        return;
    };
    let mut wanted = Vec::new();
    for deployment in tx.list(deployments, None) {
        let owner = Owner::deployment(&deployment);
        owner.scale(tx, context);
        wanted.push(object::uid(&deployment).to_owned());
    }
    for set in tx.list(sets, None) {
        Owner::daemon_set(&set).cover(tx, context);
    }
    orphans(tx, context, &wanted);
}

/// Puts each pod without a node on the one that has the fewest.
pub(super) fn schedule(tx: &mut Tx<'_>) {
    let (Some(pods), Some(nodes)) = (Kind::named("Pod"), Kind::named("Node")) else {
        return;
    };
    let names: Vec<String> = tx.list(nodes, None).iter().map(|node| object::name(node).to_owned()).collect();
    for pod in tx.list(pods, None) {
        if !object::text(&pod, "/spec/nodeName").is_empty() || object::is_deleting(&pod) {
            continue;
        }
        let mut load: BTreeMap<&str, usize> = names.iter().map(|name| (name.as_str(), 0)).collect();
        for other in tx.list(pods, None) {
            if let Some(count) = load.get_mut(object::text(&other, "/spec/nodeName")) {
                *count += 1;
            }
        }
        let selector = object::string_map(&pod, "/spec/nodeSelector");
        let fits = |name: &str| {
            let node = tx.get(&Key::new(nodes, "", name));
            node.is_some_and(|node| object::has_labels(&node, &selector))
        };
        let least = load.into_iter().filter(|(name, _)| fits(name)).min_by_key(|(_, count)| *count);
        let Some((node, _)) = least else { continue };
        let mut placed = Value::clone(&pod);
        placed["spec"]["nodeName"] = node.into();
        let scheduled = json!({"type": "PodScheduled", "status": "True"});
        match placed["status"]["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(scheduled),
            None => placed["status"]["conditions"] = json!([scheduled]),
        }
        tx.put(&key_of(pods, &pod), placed);
    }
}

/// Deletes pods of deployments that are gone.
fn orphans(tx: &mut Tx<'_>, context: &Context<'_>, deployments: &[String]) {
    let Some(pods) = Kind::named("Pod") else {
        return;
    };
    for pod in tx.list(pods, None) {
        let Some(owner) = replica_set(&pod).filter(|_| !object::is_deleting(&pod)) else {
            continue;
        };
        let hash = object::label(&pod, TEMPLATE_HASH).unwrap_or_default();
        let is_owned =
            deployments.iter().any(|uid| replica_set_uid(uid, hash) == object::text(owner, "/uid"));
        if !is_owned {
            remove(tx, context, &pod);
        }
    }
}

/// A deployment or a daemon set, as the owner of pods.
struct Owner<'a> {
    object: &'a Value,
    /// Name, kind and uid of what the pods say owns them, and the start of their names.
    reference: Value,
    hash: String,
}

impl<'a> Owner<'a> {
    fn deployment(object: &'a Value) -> Self {
        let hash = short_hash(&object["spec"]["template"].to_string());
        let reference = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "blockOwnerDeletion": true,
            "name": format!("{}-{hash}", object::name(object)),
            "uid": replica_set_uid(object::uid(object), &hash),
        });
        Self { object, reference, hash }
    }

    fn daemon_set(object: &'a Value) -> Self {
        let hash = short_hash(&object["spec"]["template"].to_string());
        let reference = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true, "blockOwnerDeletion": true,
            "name": object::name(object), "uid": object::uid(object),
        });
        Self { object, reference, hash }
    }

    /// As many pods of the present template as there should be. Pods of an older one are replaced at the pace of the
    /// deployment's strategy: so many more, and so many fewer that are ready, as it allows.
    fn scale(&self, tx: &mut Tx<'_>, context: &Context<'_>) {
        let replicas = self.object.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
        let replicas = usize::try_from(replicas).unwrap_or(usize::MAX);
        let Pace { surplus, missing } = Pace::of(self.object, replicas);
        let uid = object::uid(self.object);
        let is_ours = |pod: &Value| {
            let hash = object::label(pod, TEMPLATE_HASH).unwrap_or_default();
            replica_set(pod).is_some_and(|owner| object::text(owner, "/uid") == replica_set_uid(uid, hash))
        };
        let (mut new, old): (Vec<_>, Vec<_>) =
            living(tx, self.object, is_ours).into_iter().partition(|pod| self.is_current(pod));
        let ready = |pods: &[Arc<Value>]| pods.iter().filter(|pod| is_ready(pod)).count();
        let (ready, ready_old) = (ready(&new), ready(&old));
        let mut failure = None;
        let room = (replicas + surplus).saturating_sub(new.len() + old.len());
        for _ in 0..replicas.saturating_sub(new.len()).min(room) {
            if let Err(error) = self.create(tx, context, None) {
                failure = Some(error.to_string());
                break;
            }
        }
        // What is not ready goes first.
        new.sort_by_key(|pod| !is_ready(pod));
        let too_many = new.iter().skip(replicas);
        // Of the old ones that are ready, those that can be spared; the others are no loss.
        let spare = (ready + ready_old).saturating_sub(replicas.saturating_sub(missing));
        let idle = old.iter().filter(|pod| !is_ready(pod));
        let spared = old.iter().filter(|pod| is_ready(pod)).take(spare);
        for pod in too_many.chain(idle).chain(spared) {
            remove(tx, context, pod);
        }
        let updated = new.len().min(replicas);
        let status = json!({
            "observedGeneration": self.object["metadata"]["generation"],
            "replicas": updated + old.len(), "updatedReplicas": updated,
            "readyReplicas": ready + ready_old, "availableReplicas": ready + ready_old,
            "conditions": conditions(ready + ready_old >= replicas, failure),
        });
        self.report(tx, status);
    }

    /// One pod of the present template on every node.
    fn cover(&self, tx: &mut Tx<'_>, context: &Context<'_>) {
        let Some(nodes) = Kind::named("Node") else {
            return;
        };
        let uid = object::uid(self.object);
        let is_ours = |pod: &Value| {
            object::list(pod, "/metadata/ownerReferences")
                .iter()
                .any(|owner| object::text(owner, "/uid") == uid)
        };
        let pods = living(tx, self.object, is_ours);
        let selector = object::string_map(self.object, "/spec/template/spec/nodeSelector");
        let nodes: Vec<_> =
            tx.list(nodes, None).into_iter().filter(|node| object::has_labels(node, &selector)).collect();
        let mut failure = None;
        for node in &nodes {
            let on_node = |pod: &&Arc<Value>| object::text(pod, "/spec/nodeName") == object::name(node);
            // A node runs one pod of a daemon set at a time: the old one goes before the new one comes.
            match pods.iter().find(on_node) {
                Some(pod) if !self.is_current(pod) => remove(tx, context, pod),
                Some(_) => {}
                None if leaving(tx, self.object, is_ours, object::name(node)) => {}
                None => {
                    let created = self.create(tx, context, Some(object::name(node)));
                    failure = created.err().map(|error| error.to_string()).or(failure);
                }
            }
        }
        let ready = pods.iter().filter(|pod| object::has_condition(pod, "Ready")).count();
        let status = json!({
            "observedGeneration": self.object["metadata"]["generation"],
            "desiredNumberScheduled": nodes.len(), "currentNumberScheduled": pods.len(),
            "numberReady": ready, "numberAvailable": ready, "numberMisscheduled": 0,
            "conditions": conditions(ready >= nodes.len(), failure),
        });
        self.report(tx, status);
    }

    fn is_current(&self, pod: &Value) -> bool {
        object::label(pod, TEMPLATE_HASH) == Some(&self.hash)
    }

    fn create(
        &self,
        tx: &mut Tx<'_>,
        context: &Context<'_>,
        node: Option<&str>,
    ) -> Result<Value, crate::api::Error> {
        let pods = Kind::named("Pod").ok_or_else(|| crate::api::Error::NoSuchPath("pods".to_owned()))?;
        let mut pod = self.object["spec"]["template"].clone();
        let name = format!("{}-{}", object::text(&self.reference, "/name"), random_suffix());
        pod["metadata"]["name"] = Value::String(name);
        pod["metadata"]["labels"][TEMPLATE_HASH] = Value::String(self.hash.clone());
        pod["metadata"]["ownerReferences"] = json!([self.reference]);
        if let Some(node) = node {
            pod["spec"]["nodeName"] = node.into();
        }
        verbs::create(tx, context, pods, Some(object::namespace(self.object)), pod)
    }

    fn report(&self, tx: &mut Tx<'_>, status: Value) {
        let Some(key) = object::kind(self.object).map(|kind| key_of(kind, self.object)) else {
            return;
        };
        let Some(current) = tx.get(&key) else { return };
        let failed = object::text(&status, "/conditions/1/message");
        if !failed.is_empty() && object::text(&current, "/status/conditions/1/message") != failed {
            tracing::warn!(
                workload = object::name(self.object),
                reason = failed,
                "cannot create pods of the workload"
            );
        }
        let mut next = Value::clone(&current);
        next["status"] = status;
        tx.put(&key, next);
    }
}

/// How fast a deployment replaces its pods.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    /// So many more than there should be.
    surplus: usize,
    /// So many fewer that are ready.
    missing: usize,
}

// === impl Pace ===

impl Pace {
    /// As the strategy says; Kubernetes' default is a quarter each, the one rounded up and the other down.
    fn of(deployment: &Value, replicas: usize) -> Self {
        const DEFAULT: &str = "25%";
        let share = |key: &str, round_up: bool| {
            let value = deployment.pointer(&format!("/spec/strategy/rollingUpdate/{key}"));
            if let Some(number) = value.and_then(Value::as_u64) {
                return usize::try_from(number).unwrap_or(usize::MAX);
            }
            let percent = value.and_then(Value::as_str).unwrap_or(DEFAULT).trim_end_matches('%');
            let hundredths = percent.parse::<usize>().unwrap_or(25).saturating_mul(replicas);
            if round_up { hundredths.div_ceil(100) } else { hundredths / 100 }
        };
        let (surplus, missing) = (share("maxSurge", true), share("maxUnavailable", false));
        // With neither, nothing could ever be replaced.
        Self { surplus: if missing == 0 { surplus.max(1) } else { surplus }, missing }
    }
}

fn is_ready(pod: &Value) -> bool {
    object::has_condition(pod, "Ready")
}

fn conditions(available: bool, failure: Option<String>) -> Value {
    let mut conditions =
        vec![json!({"type": "Available", "status": if available { "True" } else { "False" }})];
    if let Some(message) = failure {
        let reason = "FailedCreate";
        conditions
            .push(json!({"type": "ReplicaFailure", "status": "True", "reason": reason, "message": message}));
    }
    Value::Array(conditions)
}

/// The pods of an owner that count: not ended and not being deleted.
fn living(tx: &Tx<'_>, owner: &Value, is_ours: impl Fn(&Value) -> bool) -> Vec<Arc<Value>> {
    let Some(pods) = Kind::named("Pod") else {
        return Vec::new();
    };
    let counts = |pod: &Arc<Value>| {
        let ended = matches!(object::text(pod, "/status/phase"), "Succeeded" | "Failed");
        is_ours(pod) && !ended && !object::is_deleting(pod)
    };
    tx.list(pods, Some(object::namespace(owner))).into_iter().filter(counts).collect()
}

/// Whether a pod of the owner is still leaving a node.
fn leaving(tx: &Tx<'_>, owner: &Value, is_ours: impl Fn(&Value) -> bool, node: &str) -> bool {
    let Some(pods) = Kind::named("Pod") else {
        return false;
    };
    let pods = tx.list(pods, Some(object::namespace(owner)));
    pods.iter()
        .any(|pod| is_ours(pod) && object::is_deleting(pod) && object::text(pod, "/spec/nodeName") == node)
}

fn replica_set(pod: &Value) -> Option<&Value> {
    let owners = object::list(pod, "/metadata/ownerReferences");
    owners.iter().find(|owner| object::text(owner, "/kind") == "ReplicaSet")
}

fn replica_set_uid(deployment: &str, hash: &str) -> String {
    uuid_for(&format!("{deployment}/{hash}"))
}

fn remove(tx: &mut Tx<'_>, context: &Context<'_>, pod: &Value) {
    let Some(pods) = Kind::named("Pod") else {
        return;
    };
    // Listed under the same lock, so there is nothing to refuse.
    let _ = verbs::delete(tx, context, &key_of(pods, pod), &Deletion::default());
}
