//! Following a collection with kube's watcher, which lists, watches, and starts over with backoff when that breaks.
//!
//! The watcher reports a relist object by object and leaves it to its reader to find out which objects are gone; this
//! module turns that into deletions.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, TryStreamExt as _, pin_mut};
use isthmus_rt::task::Tasks;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::manifest::{Kind, object};

/// How many events may wait for a slow reader.
const QUEUE: usize = 256;

/// The objects to follow.
#[derive(Debug, Clone)]
pub struct Collection {
    /// Their kind.
    pub kind: &'static Kind,
    /// Their namespace; `None` for all.
    pub namespace: Option<String>,
    /// A field selector, such as `spec.nodeName=n1`.
    pub fields: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
}

/// A change of a collection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An object exists, with this content.
    Applied(Value),
    /// An object is gone; its last known content.
    Deleted(Value),
    /// Everything that exists has been reported.
    Synced,
}

impl From<&'static Kind> for Collection {
    /// Every object of a kind.
    fn from(kind: &'static Kind) -> Self {
        Self { kind, namespace: None, fields: None, labels: None }
    }
}

pub(super) fn start(client: kube::Client, collection: Collection, tasks: &Tasks) -> mpsc::Receiver<Event> {
    let (events, receiver) = mpsc::channel(QUEUE);
    tasks.spawn("watch", async move {
        let closed = events.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = follow(client, collection, &events) => {}
        }
    });
    receiver
}

async fn follow(client: kube::Client, collection: Collection, events: &mpsc::Sender<Event>) {
    let Collection { kind, namespace, fields, labels } = collection;
    let resource = ApiResource {
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
    };
    let api: Api<DynamicObject> = match &namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let config =
        watcher::Config { field_selector: fields, label_selector: labels, ..watcher::Config::default() };
    let stream = watcher(api, config)
        .default_backoff()
        .inspect_err(|error| tracing::warn!(kind = kind.kind, %error, "watch failed, restarting it"));
    pin_mut!(stream);
    let mut known = KnownObjects { kind, objects: BTreeMap::new(), listed: BTreeMap::new() };
    while let Some(event) = stream.next().await {
        let Ok(event) = event else { continue };
        for event in known.update(event) {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// Namespace and name.
type Key = (String, String);

/// The objects that the reader knows.
#[derive(Debug)]
struct KnownObjects {
    kind: &'static Kind,
    objects: BTreeMap<Key, Value>,
    /// The objects of a list that is not complete yet.
    listed: BTreeMap<Key, Value>,
}

impl KnownObjects {
    fn update(&mut self, event: watcher::Event<DynamicObject>) -> Vec<Event> {
        match event {
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitApply(object) => {
                let object = self.json(&object);
                self.listed.insert(key(&object), object);
            }
            watcher::Event::InitDone => return self.relisted(),
            watcher::Event::Apply(object) => {
                let object = self.json(&object);
                self.objects.insert(key(&object), object.clone());
                return vec![Event::Applied(object)];
            }
            watcher::Event::Delete(object) => {
                let object = self.json(&object);
                self.objects.remove(&key(&object));
                return vec![Event::Deleted(object)];
            }
        }
        Vec::new()
    }

    /// What differs between a complete list and what was known.
    fn relisted(&mut self) -> Vec<Event> {
        let next = std::mem::take(&mut self.listed);
        let last = std::mem::take(&mut self.objects);
        let gone = last.iter().filter(|(key, _)| !next.contains_key(*key));
        let mut events: Vec<Event> = gone.map(|(_, object)| Event::Deleted(object.clone())).collect();
        let changed = next.iter().filter(|(key, object)| last.get(*key) != Some(object));
        events.extend(changed.map(|(_, object)| Event::Applied(object.clone())));
        events.push(Event::Synced);
        self.objects = next;
        events
    }

    /// The object with its kind, which the items of a list lack.
    fn json(&self, object: &DynamicObject) -> Value {
        let mut json = serde_json::to_value(object).unwrap_or_default();
        json["apiVersion"] = self.kind.api_version().into();
        json["kind"] = self.kind.kind.into();
        json
    }
}

fn key(object: &Value) -> Key {
    (object::namespace(object).to_owned(), object::name(object).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_relist_reports_only_what_differs() {
        let kind = Kind::named("Pod").unwrap();
        let pod = |name: &str, version: &str| {
            let pod = json!({"metadata": {"name": name, "resourceVersion": version}});
            serde_json::from_value::<DynamicObject>(pod).unwrap()
        };
        let mut known = KnownObjects { kind, objects: BTreeMap::new(), listed: BTreeMap::new() };
        let mut relist = |pods: Vec<DynamicObject>| {
            assert!(known.update(watcher::Event::Init).is_empty());
            for pod in pods {
                assert!(known.update(watcher::Event::InitApply(pod)).is_empty());
            }
            known.update(watcher::Event::InitDone)
        };
        assert_eq!(relist(vec![pod("a", "1"), pod("b", "2"), pod("z", "1")]).len(), 4);
        let events = relist(vec![pod("b", "3"), pod("c", "4"), pod("z", "1")]);
        let shown: Vec<String> = events
            .iter()
            .map(|event| match event {
                Event::Applied(pod) => format!("+{}", object::name(pod)),
                Event::Deleted(pod) => format!("-{}", object::name(pod)),
                Event::Synced => "synced".to_owned(),
            })
            .collect();
        assert_eq!(shown, ["-a", "+b", "+c", "synced"]);
        assert!(matches!(&events[1], Event::Applied(pod) if object::text(pod, "/kind") == "Pod"));
    }
}
