//! What holds for the whole mesh: trust domain, root namespace, and which services are global.

use std::collections::BTreeMap;

use serde_json::Value;

use super::world::Cluster;
use crate::manifest::object;

/// The default of trust domain; it is left out of resources.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Settings of the mesh.
#[derive(Debug, Clone)]
pub(super) struct Mesh {
    /// Trust domain of every identity.
    pub(super) trust_domain: String,
    /// Where mesh-wide policies and the mesh's own parts live.
    pub(super) root_namespace: String,
    /// The clusters' DNS domain.
    pub(super) domain: String,
    /// First match wins.
    pub(super) scopes: Vec<ScopeRule>,
}

/// How far a service reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// Its own cluster.
    Local,
    /// Every cluster of the mesh.
    Global,
}

/// One of `serviceScopeConfigs`.
#[derive(Debug, Clone)]
pub(super) struct ScopeRule {
    namespaces: LabelSelector,
    services: LabelSelector,
    scope: Scope,
}

/// A Kubernetes label selector; an empty one selects everything.
#[derive(Debug, Clone, Default)]
struct LabelSelector(Vec<(String, Operator)>);

#[derive(Debug, Clone)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

// === impl Mesh ===

impl Mesh {
    /// The trust domain as resources carry it.
    pub(super) fn trust_domain_in_resources(&self) -> String {
        if self.trust_domain == DEFAULT_TRUST_DOMAIN { String::new() } else { self.trust_domain.clone() }
    }

    /// The identity of a service account.
    pub(super) fn identity(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }

    /// How far a service reaches.
    pub(super) fn scope(&self, cluster: &Cluster, service: &Value) -> Scope {
        let nothing = Value::Null;
        let namespace = cluster.get("Namespace", "", object::namespace(service)).unwrap_or(&nothing);
        let matching = self
            .scopes
            .iter()
            .find(|rule| rule.namespaces.matches(namespace) && rule.services.matches(service));
        matching.map_or(Scope::Local, |rule| rule.scope)
    }

    /// These settings with the scopes of the ConfigMap `istio`, when the cluster has one that names some.
    pub(super) fn as_configured(&self, cluster: &Cluster) -> Self {
        let map = cluster.get("ConfigMap", &self.root_namespace, "istio");
        let text = map.map_or("", |map| object::text(map, "/data/mesh"));
        match scopes(text) {
            Ok(Some(scopes)) => Self { scopes, ..self.clone() },
            Ok(None) => self.clone(),
            Err(reason) => {
                tracing::warn!(reason, "ConfigMap istio is not used");
                self.clone()
            }
        }
    }
}

/// The scopes when nothing is configured: services with the label `istio.io/global: "true"` are global.
pub(super) fn default_scopes() -> Vec<ScopeRule> {
    let label = ("istio.io/global".to_owned(), Operator::In(vec!["true".to_owned()]));
    let (namespaces, services) = (LabelSelector::default(), LabelSelector(vec![label]));
    vec![ScopeRule { namespaces, services, scope: Scope::Global }]
}

/// The `serviceScopeConfigs` of a mesh configuration in YAML, if it has any.
///
/// # Errors
/// With the field that is wrong.
pub(super) fn scopes(text: &str) -> Result<Option<Vec<ScopeRule>>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let config: Value = yaml_serde::from_str(text).map_err(|error| error.to_string())?;
    let Some(rules) = config.get("serviceScopeConfigs") else {
        return Ok(None);
    };
    let rules = rules.as_array().ok_or("serviceScopeConfigs is no list")?;
    let read = |(at, rule): (usize, &Value)| {
        let scope = match object::text(rule, "/scope") {
            "GLOBAL" => Scope::Global,
            "" | "LOCAL" => Scope::Local,
            other => {
                return Err(format!("serviceScopeConfigs[{at}].scope: {other:?} is not LOCAL or GLOBAL"));
            }
        };
        let selector = |name: &str| {
            LabelSelector::read(rule.get(name))
                .map_err(|problem| format!("serviceScopeConfigs[{at}].{name}: {problem}"))
        };
        let services = match rule.get("servicesSelector") {
            Some(_) => selector("servicesSelector")?,
            None => selector("serviceSelector")?,
        };
        Ok(ScopeRule { namespaces: selector("namespaceSelector")?, services, scope })
    };
    rules.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
}

// === impl LabelSelector ===

impl LabelSelector {
    fn read(selector: Option<&Value>) -> Result<Self, String> {
        let Some(selector) = selector else {
            return Ok(Self::default());
        };
        let labels: BTreeMap<&str, &str> = object::string_map(selector, "/matchLabels");
        let one = |(key, value): (&str, &str)| (key.to_owned(), Operator::In(vec![value.to_owned()]));
        let mut terms: Vec<_> = labels.into_iter().map(one).collect();
        for expression in object::list(selector, "/matchExpressions") {
            let values = object::texts(expression, "/values").map(str::to_owned).collect();
            let operator = match object::text(expression, "/operator") {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("operator {other:?} is not one of labels")),
            };
            terms.push((object::text(expression, "/key").to_owned(), operator));
        }
        Ok(Self(terms))
    }

    fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(key, operator)| {
            let label = object::label(object, key);
            let is_one_of = |values: &[String]| values.iter().any(|value| Some(value.as_str()) == label);
            match operator {
                Operator::In(values) => is_one_of(values),
                Operator::NotIn(values) => !is_one_of(values),
                Operator::Exists => label.is_some(),
                Operator::DoesNotExist => label.is_none(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubeclient::Event;

    #[test]
    fn the_first_matching_rule_decides() {
        let text = "serviceScopeConfigs:\n\
            - namespaceSelector: {matchExpressions: [{key: kind, operator: NotIn, values: [open]}]}\n  scope: LOCAL\n\
            - servicesSelector: {matchExpressions: [{key: share, operator: Exists}]}\n  scope: GLOBAL\n";
        let mesh = Mesh {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
            scopes: scopes(text).unwrap().unwrap(),
        };
        let mut world = super::super::world::World::default();
        let id = super::super::world::ClusterId("c".to_owned());
        let namespace = json!({"metadata": {"name": "a", "labels": {"kind": "open"}}});
        world.take(&id, "Namespace", Event::Applied(namespace));
        let cluster = world.cluster(&id).unwrap();
        let scope = |namespace: &str, label: &str| {
            mesh.scope(cluster, &json!({"metadata": {"namespace": namespace, "labels": {label: "x"}}}))
        };
        assert_eq!(scope("a", "share"), Scope::Global);
        assert_eq!(scope("a", "keep"), Scope::Local);
        assert_eq!(scope("b", "share"), Scope::Local);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert!(scopes("serviceScopeConfigs: [{scope: FAR}]").unwrap_err().contains("\"FAR\""));
        assert!(scopes("accessLogFile: x").unwrap().is_none());
    }
}
