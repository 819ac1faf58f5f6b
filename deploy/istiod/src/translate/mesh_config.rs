//! What holds for the whole mesh: trust domain and its aliases, root namespace, and which services are global.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::clusters::Cluster;
use playground_k8s::manifest::object;

/// The default of trust domain; it is left out of resources.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Settings of the mesh.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mesh {
    /// Trust domain of every identity.
    pub(crate) trust_domain: String,
    /// Trust domains whose names in policies mean this one.
    pub(crate) aliases: Vec<String>,
    /// Where mesh-wide policies and the mesh's own parts live.
    pub(crate) root_namespace: String,
    /// The clusters' DNS domain.
    pub(crate) domain: String,
    /// First match wins.
    pub(crate) scopes: Vec<ScopeRule>,
}

/// How far a service reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Its own cluster.
    Local,
    /// Every cluster of the mesh.
    Global,
}

/// One of `serviceScopeConfigs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScopeRule {
    namespaces: LabelSelector,
    services: LabelSelector,
    scope: Scope,
}

/// A Kubernetes label selector; an empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector(Vec<(String, Operator)>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

// === impl Mesh ===

impl Mesh {
    /// The trust domain as resources carry it.
    pub(crate) fn trust_domain_in_resources(&self) -> String {
        if self.trust_domain == DEFAULT_TRUST_DOMAIN { String::new() } else { self.trust_domain.clone() }
    }

    /// The identity of a service account.
    pub(crate) fn identity(&self, namespace: &str, account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{account}", self.trust_domain)
    }

    /// How far a service reaches.
    pub(crate) fn scope(&self, cluster: &Cluster, service: &Value) -> Scope {
        let nothing = Value::Null;
        let namespace = cluster.get("Namespace", "", object::namespace(service)).unwrap_or(&nothing);
        let matching = self
            .scopes
            .iter()
            .find(|rule| rule.namespaces.matches(namespace) && rule.services.matches(service));
        matching.map_or(Scope::Local, |rule| rule.scope)
    }

    /// What a principal of a policy stands for: itself, and when it is of this mesh, the same under every name that the
    /// trust domain has.
    pub(crate) fn same_principals(&self, principal: &str) -> Vec<String> {
        let own = [self.trust_domain.as_str(), DEFAULT_TRUST_DOMAIN];
        let names = || self.aliases.iter().map(String::as_str);
        let found = principal
            .split_once('/')
            .filter(|(domain, _)| own.into_iter().chain(names()).any(|name| name == *domain));
        let Some((_, rest)) = found else {
            return vec![principal.to_owned()];
        };
        let mut domains: Vec<&str> = std::iter::once(self.trust_domain.as_str()).chain(names()).collect();
        domains.dedup();
        domains.into_iter().map(|domain| format!("{domain}/{rest}")).collect()
    }

    /// These settings with what the ConfigMap `istio` says, when the cluster has one.
    pub(crate) fn as_configured(&self, cluster: &Cluster) -> Self {
        let map = cluster.get("ConfigMap", &self.root_namespace, "istio");
        let text = map.map_or("", |map| object::text(map, "/data/mesh"));
        match Configured::read(text) {
            Ok(configured) => self.with(configured),
            Err(reason) => {
                tracing::warn!(
                    reason,
                    "cannot read the mesh configuration in ConfigMap istio, using the settings of the command line"
                );
                self.clone()
            }
        }
    }

    /// These settings, replaced by those that are given.
    pub(crate) fn with(&self, configured: Configured) -> Self {
        Self {
            trust_domain: configured.trust_domain.unwrap_or_else(|| self.trust_domain.clone()),
            aliases: configured.aliases.unwrap_or_else(|| self.aliases.clone()),
            scopes: configured.scopes.unwrap_or_else(|| self.scopes.clone()),
            ..self.clone()
        }
    }
}

/// What a mesh configuration says of what is used here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Configured {
    trust_domain: Option<String>,
    aliases: Option<Vec<String>>,
    scopes: Option<Vec<ScopeRule>>,
}

impl Configured {
    /// Reads a mesh configuration in YAML; an empty one says nothing.
    ///
    /// # Errors
    /// With the field that is wrong.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let config: Value = yaml_serde::from_str(text).map_err(|error| error.to_string())?;
        let trust_domain = config.get("trustDomain").map(|name| domain(name, "trustDomain")).transpose()?;
        Ok(Self { trust_domain, aliases: aliases(&config)?, scopes: scopes(&config)? })
    }
}

/// The `trustDomainAliases` of a mesh configuration, if it has any.
fn aliases(config: &Value) -> Result<Option<Vec<String>>, String> {
    let Some(names) = config.get("trustDomainAliases") else {
        return Ok(None);
    };
    let names = names.as_array().ok_or("trustDomainAliases is no list")?;
    let read = |(at, name)| domain(name, &format!("trustDomainAliases[{at}]"));
    names.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
}

/// A trust domain: letters, digits, dots, dashes and underscores, at most 255 of them, as in SPIFFE.
fn domain(name: &Value, field: &str) -> Result<String, String> {
    let text = name.as_str().unwrap_or_default();
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || text.len() > 255 || !text.chars().all(is_good) {
        return Err(format!("{field}: {name} is no trust domain"));
    }
    Ok(text.to_owned())
}

/// The scopes when nothing is configured: services with the label `istio.io/global: "true"` are global.
pub(crate) fn default_scopes() -> Vec<ScopeRule> {
    let label = ("istio.io/global".to_owned(), Operator::In(vec!["true".to_owned()]));
    let (namespaces, services) = (LabelSelector::default(), LabelSelector(vec![label]));
    vec![ScopeRule { namespaces, services, scope: Scope::Global }]
}

/// The `serviceScopeConfigs` of a mesh configuration, if it has any.
fn scopes(config: &Value) -> Result<Option<Vec<ScopeRule>>, String> {
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
    /// Reads one; an absent one selects everything.
    ///
    /// # Errors
    /// When an operator is unknown.
    pub(crate) fn read(selector: Option<&Value>) -> Result<Self, String> {
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

    /// Whether an object has such labels.
    pub(crate) fn matches(&self, object: &Value) -> bool {
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
    use playground_k8s::client::Event;

    fn mesh(configured: &str) -> Mesh {
        let mesh = Mesh {
            trust_domain: "cluster.local".to_owned(),
            aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
            scopes: default_scopes(),
        };
        mesh.with(Configured::read(configured).unwrap())
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let text = "serviceScopeConfigs:\n\
            - namespaceSelector: {matchExpressions: [{key: kind, operator: NotIn, values: [open]}]}\n  scope: LOCAL\n\
            - servicesSelector: {matchExpressions: [{key: share, operator: Exists}]}\n  scope: GLOBAL\n";
        let mesh = mesh(text);
        let mut clusters = crate::clusters::Clusters::default();
        let id = crate::clusters::ClusterId("c".to_owned());
        let namespace = json!({"metadata": {"name": "a", "labels": {"kind": "open"}}});
        clusters.apply(&id, "Namespace", Event::Applied(namespace));
        let cluster = clusters.cluster(&id).unwrap();
        let scope = |namespace: &str, label: &str| {
            mesh.scope(cluster, &json!({"metadata": {"namespace": namespace, "labels": {label: "x"}}}))
        };
        assert_eq!(scope("a", "share"), Scope::Global);
        assert_eq!(scope("a", "keep"), Scope::Local);
        assert_eq!(scope("b", "share"), Scope::Local);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, outcome) in [
            (
                "serviceScopeConfigs: [{scope: FAR}]",
                "serviceScopeConfigs[0].scope: \"FAR\" is not LOCAL or GLOBAL",
            ),
            ("trustDomain: a/b", "trustDomain: \"a/b\" is no trust domain"),
            ("trustDomainAliases: x", "trustDomainAliases is no list"),
            ("trustDomainAliases: [x, '']", "trustDomainAliases[1]: \"\" is no trust domain"),
        ] {
            assert_eq!(Configured::read(text).unwrap_err(), outcome);
        }
        assert_eq!(Configured::read("accessLogFile: x").unwrap(), Configured::default());
    }

    #[test]
    fn a_principal_of_the_mesh_has_every_name_of_its_trust_domain() {
        let mesh = mesh("trustDomain: td\ntrustDomainAliases: [old, older]\n");
        let all = ["td/ns/a/sa/b", "old/ns/a/sa/b", "older/ns/a/sa/b"];
        for principal in ["td/ns/a/sa/b", "older/ns/a/sa/b", "cluster.local/ns/a/sa/b"] {
            assert_eq!(mesh.same_principals(principal), all);
        }
        for stranger in ["*", "*/ns/a/sa/b", "else/ns/a/sa/b"] {
            assert_eq!(mesh.same_principals(stranger), [stranger]);
        }
    }
}
