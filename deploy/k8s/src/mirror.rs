//! A copy of a collection at the API server, kept up to date.

use std::collections::BTreeMap;

use isthmus_rt::task::Tasks;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::{Client, Collection, Event};
use crate::manifest::object;

/// The objects of one collection by namespace and name.
#[derive(Debug)]
pub struct Mirror {
    events: mpsc::Receiver<Event>,
    objects: BTreeMap<(String, String), Value>,
    synced: bool,
}

impl Mirror {
    /// Follows a collection.
    pub fn follow(client: &Client, collection: impl Into<Collection>, tasks: &Tasks) -> Self {
        Self::of(client.watch(collection.into(), tasks))
    }

    fn of(events: mpsc::Receiver<Event>) -> Self {
        Self { events, objects: BTreeMap::new(), synced: false }
    }

    /// Waits until something changed and takes in all that is known by then. Can be dropped at any time.
    pub async fn changed(&mut self) -> anyhow::Result<()> {
        let Some(event) = self.events.recv().await else {
            anyhow::bail!("the watch of the collection ended")
        };
        self.take(event);
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
        Ok(())
    }

    /// Whether everything that exists is in the copy.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// The objects.
    pub fn objects(&self) -> impl Iterator<Item = &Value> + Clone {
        self.objects.values()
    }

    fn take(&mut self, event: Event) {
        let key = |object: &Value| (object::namespace(object).to_owned(), object::name(object).to_owned());
        match event {
            Event::Applied(object) => _ = self.objects.insert(key(&object), object),
            Event::Deleted(object) => _ = self.objects.remove(&key(&object)),
            Event::Synced => self.synced = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_came_and_went_is_not_there() {
        let (events, receiver) = mpsc::channel(8);
        let mut mirror = Mirror::of(receiver);
        let pod = |name: &str| json!({"metadata": {"namespace": "n", "name": name}});
        for event in [Event::Applied(pod("a")), Event::Applied(pod("b")), Event::Deleted(pod("a"))] {
            events.send(event).await.unwrap();
        }
        mirror.changed().await.unwrap();
        assert!(!mirror.is_synced());
        events.send(Event::Synced).await.unwrap();
        mirror.changed().await.unwrap();
        assert!(mirror.is_synced());
        assert_eq!(mirror.objects().map(object::name).collect::<Vec<_>>(), ["b"]);
        drop(events);
        assert!(mirror.changed().await.is_err());
    }
}
