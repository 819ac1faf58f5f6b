//! Which services of this cluster are global (reachable from other networks), for the east-west gateway: workload xDS
//! does not carry it, so it is computed from labels and `serviceScopeConfigs` as istiod does. A service that is not
//! known to be global is not reachable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::{Stream, StreamExt as _};
use isthmus_model::NamespacedHostname;
use isthmus_proto::enroll::{LabelSelector, Labels, Requirement};
use isthmus_rt::drain::Watch;
use isthmus_rt::ready::BlockReady;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;

/// The global services, kept up to date by [`watch`]. Clones share the set.
#[derive(Debug, Clone, Default)]
pub struct GlobalServices(Arc<RwLock<BTreeSet<NamespacedHostname>>>);

/// The objects that decide the scope of services.
#[derive(Debug, Clone)]
struct ScopeInputs {
    domain: String,
    namespaces: BTreeMap<String, Labels>,
    services: BTreeMap<(String, String), Labels>,
    rules: Vec<ScopeRule>,
}

/// One entry of `serviceScopeConfigs` in the mesh config. The first GLOBAL entry that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScopeRule {
    #[serde(default)]
    namespace_selector: LabelSelector,
    #[serde(default)]
    services_selector: LabelSelector,
    #[serde(default)]
    scope: Option<String>,
}

/// The part of the mesh config that configures scopes.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    service_scope_configs: Option<Vec<ScopeRule>>,
}

/// Settings of the watch.
#[derive(Debug, Clone)]
pub struct Config {
    /// DNS domain of the cluster's services, `cluster.local` by default.
    pub cluster_domain: String,
    /// Namespace of istiod's mesh config (ConfigMap `istio`, key `mesh`).
    pub system_namespace: String,
}

// === impl GlobalServices ===

impl GlobalServices {
    /// Whether the service is known to be global.
    #[must_use]
    pub fn contains(&self, service: &NamespacedHostname) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(service)
    }

    fn publish(&self, services: BTreeSet<NamespacedHostname>) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for gone in current.difference(&services) {
            tracing::info!(service = %gone, "service no longer global: not reachable through this gateway");
        }
        for new in services.difference(&current) {
            tracing::info!(service = %new, "service global: reachable through this gateway");
        }
        *current = services;
    }
}

// === impl ScopeInputs ===

impl ScopeInputs {
    fn new(domain: String) -> Self {
        Self { domain, namespaces: BTreeMap::new(), services: BTreeMap::new(), rules: default_rules() }
    }

    fn global(&self) -> BTreeSet<NamespacedHostname> {
        let none = Labels::new();
        let global = |namespace: &str, labels: &Labels| {
            let namespace = self.namespaces.get(namespace).unwrap_or(&none);
            self.rules.iter().any(|rule| {
                rule.scope.as_deref() == Some("GLOBAL")
                    && rule.namespace_selector.matches(namespace)
                    && rule.services_selector.matches(labels)
            })
        };
        let name = |(namespace, name): &(String, String)| NamespacedHostname {
            namespace: namespace.as_str().into(),
            hostname: format!("{name}.{namespace}.svc.{}", self.domain).into(),
        };
        self.services
            .iter()
            .filter(|((ns, _), labels)| global(ns, labels))
            .map(|(key, _)| name(key))
            .collect()
    }

    /// Applies a mesh config. One that does not parse leaves the last one in force, so that a typo does not change
    /// what is reachable.
    fn configure(&mut self, text: Option<&str>) {
        let Some(text) = text else {
            self.rules = default_rules();
            return;
        };
        match yaml_serde::from_str::<Option<MeshConfig>>(text) {
            Ok(config) => {
                self.rules = config.and_then(|c| c.service_scope_configs).unwrap_or_else(default_rules)
            }
            Err(error) => {
                tracing::warn!(%error, "mesh config ignored: serviceScopeConfigs does not parse, the last one stays in force")
            }
        }
    }
}

/// The default of Istio's ambient profile: a service is global by its own label.
fn default_rules() -> Vec<ScopeRule> {
    let labelled = Requirement::In("istio.io/global".to_owned(), vec!["true".to_owned()]);
    vec![ScopeRule {
        namespace_selector: LabelSelector::default(),
        services_selector: LabelSelector { match_expressions: vec![labelled], ..LabelSelector::default() },
        scope: Some("GLOBAL".to_owned()),
    }]
}

#[expect(clippy::large_enum_variant, reason = "one lives at a time")]
enum Change {
    Namespace(Event<Namespace>),
    Service(Event<Service>),
    Mesh(Event<ConfigMap>),
}

/// Keeps `global` up to date until the drain begins. `ready` is released when services and namespaces were listed.
pub async fn watch(client: Client, config: Config, global: GlobalServices, ready: BlockReady, drain: Watch) {
    let mesh = watcher::Config::default().fields("metadata.name=istio");
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default());
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
    let maps = watcher(Api::<ConfigMap>::namespaced(client, &config.system_namespace), mesh);
    let all = futures_util::stream::select(
        restarting(namespaces, "namespaces").map(Change::Namespace),
        futures_util::stream::select(
            restarting(services, "services").map(Change::Service),
            restarting(maps, "mesh config").map(Change::Mesh),
        ),
    );
    tokio::select! {
        () = follow(all, ScopeInputs::new(config.cluster_domain), global, ready) => {}
        () = drain.graceful() => {}
    }
}

/// A watch that is restarted with backoff. An error is logged once until something else happens: a missing permission,
/// which names itself, would fill the log.
fn restarting<K: Send + 'static>(
    stream: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
    what: &'static str,
) -> std::pin::Pin<Box<dyn Stream<Item = Event<K>> + Send>> {
    let mut last = String::new();
    let logged = stream.default_backoff().inspect(move |event| match event {
        Ok(Event::Init) => {}
        Ok(_) => last.clear(),
        Err(error) => {
            let error = error.to_string();
            if error != last {
                tracing::warn!(error, watch = what, "watch of the API server broken, restarting it");
            }
            last = error;
        }
    });
    Box::pin(logged.filter_map(|event| async move { event.ok() }))
}

async fn follow(
    changes: impl Stream<Item = Change>,
    mut inputs: ScopeInputs,
    global: GlobalServices,
    ready: BlockReady,
) {
    let mut changes = std::pin::pin!(changes);
    let mut ready = Some(ready);
    let (mut namespaces, mut services) = (false, false);
    while let Some(change) = changes.next().await {
        match change {
            Change::Namespace(event) => namespaces |= namespace(&mut inputs, event),
            Change::Service(event) => services |= service(&mut inputs, event),
            Change::Mesh(event) => mesh(&mut inputs, event),
        }
        if namespaces && services {
            global.publish(inputs.global());
            ready = None;
        }
    }
    drop(ready);
}

/// Applies an event; true when it completes the list.
fn namespace(inputs: &mut ScopeInputs, event: Event<Namespace>) -> bool {
    match event {
        Event::Init => inputs.namespaces.clear(),
        Event::InitApply(one) | Event::Apply(one) => {
            inputs.namespaces.insert(one.name_any(), one.labels().clone());
        }
        Event::Delete(one) => {
            inputs.namespaces.remove(&one.name_any());
        }
        Event::InitDone => return true,
    }
    false
}

fn service(inputs: &mut ScopeInputs, event: Event<Service>) -> bool {
    let key = |one: &Service| (one.namespace().unwrap_or_default(), one.name_any());
    match event {
        Event::Init => inputs.services.clear(),
        Event::InitApply(one) | Event::Apply(one) => {
            inputs.services.insert(key(&one), one.labels().clone());
        }
        Event::Delete(one) => {
            inputs.services.remove(&key(&one));
        }
        Event::InitDone => return true,
    }
    false
}

fn mesh(inputs: &mut ScopeInputs, event: Event<ConfigMap>) {
    match event {
        Event::InitApply(map) | Event::Apply(map) => {
            inputs.configure(map.data.as_ref().and_then(|data| data.get("mesh")).map(String::as_str));
        }
        Event::Delete(_) => inputs.configure(None),
        Event::Init | Event::InitDone => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn inputs() -> ScopeInputs {
        let mut inputs = ScopeInputs::new("cluster.local".to_owned());
        inputs.namespaces.insert("sample".to_owned(), labels(&[("team", "a")]));
        inputs
            .services
            .insert(("sample".to_owned(), "hello".to_owned()), labels(&[("istio.io/global", "true")]));
        inputs.services.insert(("sample".to_owned(), "local".to_owned()), Labels::new());
        inputs
    }

    fn names(inputs: &ScopeInputs) -> Vec<String> {
        inputs.global().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_labelled_services_are_global_by_default() {
        assert_eq!(names(&inputs()), ["sample/hello.sample.svc.cluster.local"]);
    }

    #[test]
    fn service_scope_configs_override_the_default() {
        let mut inputs = inputs();
        inputs.configure(Some(
            "serviceScopeConfigs:\n- namespaceSelector: {matchLabels: {team: a}}\n  scope: GLOBAL\n",
        ));
        assert_eq!(names(&inputs).len(), 2);
        inputs.configure(Some("serviceScopeConfigs: []"));
        assert!(names(&inputs).is_empty());
        inputs.configure(Some("serviceScopeConfigs: 7"));
        assert!(names(&inputs).is_empty(), "a config that does not parse must not widen reachability");
        inputs.configure(Some("defaultConfig: {}"));
        assert_eq!(names(&inputs).len(), 1);
    }

    #[test]
    fn an_unknown_service_is_not_global() {
        let global = GlobalServices::default();
        let name = NamespacedHostname::parse("sample/hello.sample.svc.cluster.local").unwrap();
        assert!(!global.contains(&name));
        global.publish(inputs().global());
        assert!(global.contains(&name));
    }
}
