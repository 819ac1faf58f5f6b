//! Which services of this cluster are global, for the east-west gateway: workload xDS does not say it, the API server
//! does. A service that is not known to be global is not reachable from other networks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use isthmus_model::NamespacedHostname;
use isthmus_proto::enroll::{LabelSelector, Labels, Requirement};
use isthmus_rt::drain::Watch;
use isthmus_rt::ready::BlockReady;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;

/// The set of global services, kept up to date by [`watch`]. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Globals(Arc<RwLock<BTreeSet<NamespacedHostname>>>);

/// What the scope of services is decided by.
#[derive(Debug, Clone)]
struct Book {
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

/// The part of the mesh config that says it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    service_scope_configs: Option<Vec<ScopeRule>>,
}

/// Where to look.
#[derive(Debug, Clone)]
pub struct Config {
    /// Domain of the cluster's service names.
    pub cluster_domain: String,
    /// Namespace of the mesh config (ConfigMap `istio`, key `mesh`).
    pub system_namespace: String,
}

// === impl Globals ===

impl Globals {
    /// Whether the service is known to be global.
    #[must_use]
    pub fn contains(&self, service: &NamespacedHostname) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(service)
    }

    fn publish(&self, services: BTreeSet<NamespacedHostname>) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for gone in held.difference(&services) {
            tracing::info!(service = %gone, "no longer global: not reachable through this gateway");
        }
        for new in services.difference(&held) {
            tracing::info!(service = %new, "global: reachable through this gateway");
        }
        *held = services;
    }
}

// === impl Book ===

impl Book {
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

    /// Takes a mesh config over; one that cannot be read leaves the last one in force.
    fn configure(&mut self, text: Option<&str>) {
        let Some(text) = text else {
            self.rules = default_rules();
            return;
        };
        match yaml_serde::from_str::<Option<MeshConfig>>(text) {
            Ok(config) => {
                self.rules = config.and_then(|c| c.service_scope_configs).unwrap_or_else(default_rules)
            }
            Err(error) => tracing::warn!(%error, "mesh config, serviceScopeConfigs: kept as it was"),
        }
    }
}

/// What the ambient profile ships: a service says so itself.
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

/// Keeps `globals` true until the drain begins. `ready` is released when services and namespaces are known.
pub async fn watch(client: Client, config: Config, globals: Globals, ready: BlockReady, drain: Watch) {
    let mesh = watcher::Config::default().fields("metadata.name=istio");
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default());
    let services = watcher(Api::<Service>::all(client.clone()), watcher::Config::default());
    let maps = watcher(Api::<ConfigMap>::namespaced(client, &config.system_namespace), mesh);
    let all = futures_util::stream::select(
        lasting(namespaces, "namespaces").map(Change::Namespace),
        futures_util::stream::select(
            lasting(services, "services").map(Change::Service),
            lasting(maps, "mesh config").map(Change::Mesh),
        ),
    );
    tokio::select! {
        () = follow(all, Book::new(config.cluster_domain), globals, ready) => {}
        () = drain.graceful() => {}
    }
}

/// A watch that is taken up again with growing waits, one log line an error.
fn lasting<K: Send + 'static>(
    stream: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send + 'static,
    what: &'static str,
) -> std::pin::Pin<Box<dyn Stream<Item = Event<K>> + Send>> {
    let logged = stream.default_backoff().inspect_err(move |error| tracing::warn!(%error, "watching {what}"));
    Box::pin(logged.filter_map(|event| async move { event.ok() }))
}

async fn follow(changes: impl Stream<Item = Change>, mut book: Book, globals: Globals, ready: BlockReady) {
    let mut changes = std::pin::pin!(changes);
    let mut ready = Some(ready);
    let (mut namespaces, mut services) = (false, false);
    while let Some(change) = changes.next().await {
        match change {
            Change::Namespace(event) => namespaces |= namespace(&mut book, event),
            Change::Service(event) => services |= service(&mut book, event),
            Change::Mesh(event) => mesh(&mut book, event),
        }
        if namespaces && services {
            globals.publish(book.global());
            ready = None;
        }
    }
    drop(ready);
}

/// Returns whether the list is complete from here on.
fn namespace(book: &mut Book, event: Event<Namespace>) -> bool {
    match event {
        Event::Init => book.namespaces.clear(),
        Event::InitApply(one) | Event::Apply(one) => {
            book.namespaces.insert(one.name_any(), one.labels().clone());
        }
        Event::Delete(one) => {
            book.namespaces.remove(&one.name_any());
        }
        Event::InitDone => return true,
    }
    false
}

fn service(book: &mut Book, event: Event<Service>) -> bool {
    let key = |one: &Service| (one.namespace().unwrap_or_default(), one.name_any());
    match event {
        Event::Init => book.services.clear(),
        Event::InitApply(one) | Event::Apply(one) => {
            book.services.insert(key(&one), one.labels().clone());
        }
        Event::Delete(one) => {
            book.services.remove(&key(&one));
        }
        Event::InitDone => return true,
    }
    false
}

fn mesh(book: &mut Book, event: Event<ConfigMap>) {
    match event {
        Event::InitApply(map) | Event::Apply(map) => {
            book.configure(map.data.as_ref().and_then(|data| data.get("mesh")).map(String::as_str));
        }
        Event::Delete(_) => book.configure(None),
        Event::Init | Event::InitDone => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn book() -> Book {
        let mut book = Book::new("cluster.local".to_owned());
        book.namespaces.insert("sample".to_owned(), labels(&[("team", "a")]));
        book.services
            .insert(("sample".to_owned(), "hello".to_owned()), labels(&[("istio.io/global", "true")]));
        book.services.insert(("sample".to_owned(), "local".to_owned()), Labels::new());
        book
    }

    fn names(book: &Book) -> Vec<String> {
        book.global().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_labelled_services_are_global_by_default() {
        assert_eq!(names(&book()), ["sample/hello.sample.svc.cluster.local"]);
    }

    #[test]
    fn the_mesh_config_decides_when_it_says_something() {
        let mut book = book();
        book.configure(Some(
            "serviceScopeConfigs:\n- namespaceSelector: {matchLabels: {team: a}}\n  scope: GLOBAL\n",
        ));
        assert_eq!(names(&book).len(), 2);
        book.configure(Some("serviceScopeConfigs: []"));
        assert!(names(&book).is_empty());
        book.configure(Some("serviceScopeConfigs: 7"));
        assert!(names(&book).is_empty(), "a config that cannot be read must not widen anything");
        book.configure(Some("defaultConfig: {}"));
        assert_eq!(names(&book).len(), 1);
    }

    #[test]
    fn what_is_not_known_is_not_global() {
        let globals = Globals::default();
        let name = NamespacedHostname::parse("sample/hello.sample.svc.cluster.local").unwrap();
        assert!(!globals.contains(&name));
        globals.publish(book().global());
        assert!(globals.contains(&name));
    }
}
