//! At the end of the process: is it replaced by a successor, for which everything stays in place, or is it removed from
//! this node. Asks the API server for the DaemonSet; the decision itself is pure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};
use kube::{Api, Client};

/// Deadline of one question.
const ASK: Duration = Duration::from_secs(3);
/// How often a question without an answer is repeated, and the pause before that.
const AGAIN: (u32, Duration) = (2, Duration::from_secs(1));

/// What happens to what is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It stays; pods of the mesh cannot start until the successor runs.
    Keep(String),
    /// It is removed.
    Remove(String),
}

/// What the API server says about the DaemonSet.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// It exists. Is it being deleted, and does it still want this node?
    Exists { deleting: bool, wanted: bool },
    /// It does not exist.
    Gone,
    /// The account of this process is gone or has lost its rights, as in the course of an uninstallation.
    Refused(u16),
    /// There is no answer.
    Unknown(String),
}

/// Decides. Without an answer everything stays: an entry that stays by mistake keeps pods of the mesh from starting, one
/// that goes by mistake lets them start in plain text.
fn decide(daemon_set: &str, answer: &Answer) -> End {
    match answer {
        Answer::Exists { deleting: true, .. } => {
            End::Remove(format!("DaemonSet {daemon_set} is being deleted"))
        }
        Answer::Exists { wanted: false, .. } => {
            End::Remove(format!("DaemonSet {daemon_set} does not want this node any more"))
        }
        Answer::Exists { .. } => End::Keep(format!("DaemonSet {daemon_set} still wants this node")),
        Answer::Gone => End::Remove(format!("there is no DaemonSet {daemon_set}")),
        Answer::Refused(status) => End::Remove(format!(
            "the API server answers {status} to a question for DaemonSet {daemon_set}, as it does after an \
             uninstallation; if it is none, the role lacks the permission to get it, and the nodes"
        )),
        Answer::Unknown(why) => {
            End::Keep(format!("it cannot be told whether DaemonSet {daemon_set} exists: {why}"))
        }
    }
}

/// Asks, and decides.
pub(crate) async fn end(client: &Client, namespace: &str, daemon_set: &str, node: &str) -> End {
    let (repeats, pause) = AGAIN;
    let mut answer = ask(client, namespace, daemon_set, node).await;
    for _ in 0..repeats {
        if !matches!(answer, Answer::Unknown(_)) {
            break;
        }
        tokio::time::sleep(pause).await;
        answer = ask(client, namespace, daemon_set, node).await;
    }
    decide(&format!("{namespace}/{daemon_set}"), &answer)
}

async fn ask(client: &Client, namespace: &str, daemon_set: &str, node: &str) -> Answer {
    let (sets, nodes) =
        (Api::<DaemonSet>::namespaced(client.clone(), namespace), Api::<Node>::all(client.clone()));
    let asked = tokio::time::timeout(ASK, async {
        let Some(set) = found(sets.get(daemon_set).await)? else { return Ok(Answer::Gone) };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Answer::Exists { deleting: true, wanted: false });
        }
        let Some(node) = found(nodes.get(node).await)? else {
            return Ok(Answer::Exists { deleting: false, wanted: false });
        };
        let template = set.spec.and_then(|spec| spec.template.spec);
        let wanted = template.is_none_or(|template| wants(&template, &node));
        Ok::<_, kube::Error>(Answer::Exists { deleting: false, wanted })
    });
    match asked.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => Answer::Refused(status.code),
        Ok(Err(error)) => Answer::Unknown(error.to_string()),
        Err(_) => Answer::Unknown(format!("no answer within {ASK:?}")),
    }
}

/// `None` for an object that does not exist.
fn found<T>(read: Result<T, kube::Error>) -> Result<Option<T>, kube::Error> {
    match read {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        read => read.map(Some),
    }
}

/// Whether a DaemonSet with this template runs on the node: its node selector and required node affinity. Taints do not
/// count: one that keeps the next pod away does not take the node out of the mesh.
fn wants(template: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let name = node.metadata.name.clone().unwrap_or_default();
    let of = |key: &str| labels.get(key).map(String::as_str);
    let selected = template.node_selector.iter().flatten().all(|(key, value)| of(key) == Some(value));
    let required = template
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let field = |key: &str| (key == "metadata.name").then_some(name.as_str());
    let matches = |term: &NodeSelectorTerm| {
        let mut all = term.match_expressions.iter().flatten().map(|one| holds(one, of(&one.key))).peekable();
        let mut fields = term.match_fields.iter().flatten().map(|one| holds(one, field(&one.key))).peekable();
        // A term without conditions matches nothing.
        (all.peek().is_some() || fields.peek().is_some()) && all.all(|it| it) && fields.all(|it| it)
    };
    selected && required.is_none_or(|required| required.node_selector_terms.iter().any(matches))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = number(value).zip(number(values.first().map(String::as_str)));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared.is_some_and(|(have, want)| have > want),
        "Lt" => compared.is_some_and(|(have, want)| have < want),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn everything_stays_for_a_successor_and_without_an_answer() {
        let exists = |deleting, wanted| Answer::Exists { deleting, wanted };
        let rows = [
            (exists(false, true), true, "still wants this node"),
            (exists(false, false), false, "does not want this node"),
            (exists(true, true), false, "being deleted"),
            (Answer::Gone, false, "no DaemonSet s/d"),
            (Answer::Refused(401), false, "answers 401"),
            (Answer::Refused(403), false, "lacks the permission"),
            (Answer::Unknown("timed out".to_owned()), true, "timed out"),
        ];
        for (answer, kept, text) in rows {
            match decide("s/d", &answer) {
                End::Keep(why) => assert!(kept && why.contains(text), "{answer:?}: {why}"),
                End::Remove(why) => assert!(!kept && why.contains(text), "{answer:?}: {why}"),
            }
        }
    }

    #[test]
    fn a_template_wants_the_nodes_that_its_required_affinity_names() {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"os": "linux", "zone": "a", "cores": "8"}}
        }))
        .unwrap();
        let term = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let required = |terms: Value| {
            json!({"affinity": {"nodeAffinity":
                {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
        };
        let field = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]});
        let rows = [
            (json!({}), true),
            (json!({"nodeSelector": {"os": "linux"}}), true),
            (json!({"nodeSelector": {"os": "windows"}}), false),
            (required(json!([term("zone", "In", json!(["a", "b"]))])), true),
            (required(json!([term("zone", "In", json!(["b"]))])), false),
            (required(json!([term("zone", "NotIn", json!(["a"]))])), false),
            (required(json!([term("gone", "NotIn", json!(["a"]))])), true),
            (required(json!([term("zone", "Exists", json!(null))])), true),
            (required(json!([term("zone", "DoesNotExist", json!(null))])), false),
            (required(json!([term("cores", "Gt", json!(["4"]))])), true),
            (required(json!([term("cores", "Lt", json!(["4"]))])), false),
            (required(json!([term("zone", "Like", json!(["a"]))])), false),
            // Terms are alternatives.
            (required(json!([term("zone", "In", json!(["b"])), field])), true),
            (required(json!([{}])), false),
        ];
        for (spec, want) in rows {
            let mut with = spec.clone();
            with["containers"] = json!([]);
            let template: PodSpec = serde_json::from_value(with).unwrap();
            assert_eq!(wants(&template, &node), want, "{spec}");
        }
    }
}
