//! Which pods belong to the mesh: one rule, shared by the CNI plugin and the node role so that the two cannot disagree.
//! Pure: it owns the label selectors and the verdict, and must not know how a pod or its namespace was read.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The label that puts a pod, or every pod of a namespace, into the mesh (`ambient`) or out of it (`none`).
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The annotation that a sidecar injector leaves on a pod.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// The annotation that records how far the redirection of a pod has come.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// Values of the `app` label that mark a data plane pod in the system namespace.
const DATAPLANE_APPS: [&str; 2] = ["ztunnel", "isthmus"];
/// How the pods of the node role are named.
const NODE_POD_PREFIXES: [&str; 2] = ["istio-cni-node-", "isthmus-node-"];

/// Labels or annotations of an object.
pub type Labels = BTreeMap<String, String>;

/// A Kubernetes label selector. The empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LabelSelector {
    /// Labels that must be there with exactly these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
    /// Further conditions, all of which must hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRequirement", into = "RawRequirement")]
pub enum Requirement {
    /// The label is there with one of the values.
    In(String, Vec<String>),
    /// The label is absent, or has none of the values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is absent.
    DoesNotExist(String),
}

/// One pair of selectors; a pod that both match is selected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    /// On the labels of the pod.
    pub pod_selector: LabelSelector,
    /// On the labels of its namespace.
    pub namespace_selector: LabelSelector,
}

/// The configured rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// A pod that any pair selects belongs to the mesh.
    pub selectors: Vec<Selector>,
    /// Namespaces whose pods never do, whatever their labels.
    pub exclude_namespaces: Vec<String>,
    /// Where the mesh's own pods run; its data plane pods are never enrolled.
    pub system_namespace: String,
}

/// What the rule needs to know of a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodFacts<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// Its annotations.
    pub annotations: &'a Labels,
    /// Whether it runs in the node's own network namespace.
    pub host_network: bool,
}

/// The verdict on a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It belongs to the mesh.
    Enrol,
    /// It does not.
    Skip(Reason),
}

/// Why a pod stays out of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// It has no network namespace of its own.
    HostNetwork,
    /// It has a sidecar.
    Sidecar,
    /// It is the data plane itself.
    DataPlane,
    /// No selector matches it.
    NotSelected,
}

/// The wire form of a [`Requirement`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequirement {
    key: String,
    operator: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
}

/// Whether this is a pod of the node role itself, which must start even when there is no answer on the event socket.
#[must_use]
pub fn is_node_pod(namespace: &str, name: &str, node_namespace: &str) -> bool {
    namespace == node_namespace && NODE_POD_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

// === impl Rules ===

impl Default for Rules {
    fn default() -> Self {
        Self {
            selectors: default_selectors(),
            exclude_namespaces: vec!["kube-system".to_owned()],
            system_namespace: "istio-system".to_owned(),
        }
    }
}

/// The pairs used when none are configured: the pod's own label, or its namespace's unless the pod says `none`.
#[must_use]
pub fn default_selectors() -> Vec<Selector> {
    let ambient = LabelSelector {
        match_labels: [(DATAPLANE_MODE.to_owned(), "ambient".to_owned())].into(),
        match_expressions: Vec::new(),
    };
    let not_none = LabelSelector {
        match_labels: Labels::new(),
        match_expressions: vec![Requirement::NotIn(DATAPLANE_MODE.to_owned(), vec!["none".to_owned()])],
    };
    vec![
        Selector { pod_selector: ambient.clone(), namespace_selector: LabelSelector::default() },
        Selector { pod_selector: not_none, namespace_selector: ambient },
    ]
}

impl Rules {
    /// Whether a namespace is excluded, which needs nothing of the pod.
    #[must_use]
    pub fn excludes(&self, namespace: &str) -> bool {
        self.exclude_namespaces.iter().any(|excluded| excluded == namespace)
    }

    /// Whether a pod belongs to the mesh, given the labels of its namespace.
    #[must_use]
    pub fn decide(&self, pod: PodFacts<'_>, namespace_labels: &Labels) -> Decision {
        if self.excludes(pod.namespace) {
            return Decision::Skip(Reason::ExcludedNamespace);
        }
        if pod.host_network {
            return Decision::Skip(Reason::HostNetwork);
        }
        if pod.annotations.contains_key(SIDECAR_STATUS) {
            return Decision::Skip(Reason::Sidecar);
        }
        let app = pod.labels.get("app").map(String::as_str);
        if pod.namespace == self.system_namespace && app.is_some_and(|app| DATAPLANE_APPS.contains(&app)) {
            return Decision::Skip(Reason::DataPlane);
        }
        if self.selectors.iter().any(|pair| pair.matches(pod.labels, namespace_labels)) {
            Decision::Enrol
        } else {
            Decision::Skip(Reason::NotSelected)
        }
    }
}

// === impl Selector ===

impl Selector {
    /// Whether both halves match.
    #[must_use]
    pub fn matches(&self, pod: &Labels, namespace: &Labels) -> bool {
        self.pod_selector.matches(pod) && self.namespace_selector.matches(namespace)
    }
}

// === impl LabelSelector ===

impl LabelSelector {
    /// Whether every condition holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }
}

// === impl Requirement ===

impl Requirement {
    fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl TryFrom<RawRequirement> for Requirement {
    type Error = String;

    fn try_from(raw: RawRequirement) -> Result<Self, String> {
        let RawRequirement { key, operator, values } = raw;
        let requirement = match operator.as_str() {
            "In" => Self::In(key.clone(), values.clone()),
            "NotIn" => Self::NotIn(key.clone(), values.clone()),
            "Exists" => Self::Exists(key.clone()),
            "DoesNotExist" => Self::DoesNotExist(key.clone()),
            _ => {
                return Err(format!(
                    "operator {operator:?} of label {key:?} is not one of In, NotIn, Exists, DoesNotExist"
                ));
            }
        };
        let wants_values = matches!(requirement, Self::In(..) | Self::NotIn(..));
        match (wants_values, values.is_empty()) {
            (true, true) => Err(format!("operator {operator} of label {key:?} needs values")),
            (false, false) => Err(format!("operator {operator} of label {key:?} takes no values")),
            _ => Ok(requirement),
        }
    }
}

impl From<Requirement> for RawRequirement {
    fn from(requirement: Requirement) -> Self {
        let (key, operator, values) = match requirement {
            Requirement::In(key, values) => (key, "In", values),
            Requirement::NotIn(key, values) => (key, "NotIn", values),
            Requirement::Exists(key) => (key, "Exists", Vec::new()),
            Requirement::DoesNotExist(key) => (key, "DoesNotExist", Vec::new()),
        };
        Self { key, operator: operator.to_owned(), values }
    }
}

// === impl Reason ===

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ExcludedNamespace => "its namespace is excluded",
            Self::HostNetwork => "it runs in the host's network namespace",
            Self::Sidecar => "it has a sidecar",
            Self::DataPlane => "it is the mesh's own data plane",
            Self::NotSelected => "no enablement selector matches its labels and its namespace's",
        })
    }
}

#[cfg(test)]
mod tests;
