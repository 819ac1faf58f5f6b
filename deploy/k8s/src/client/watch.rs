//! Following a collection: list, then watch from the list's version, and again from the start whenever that breaks.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use isthmus_rt::task::Tasks;
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Client, Error};
use crate::manifest::object;

/// First and longest pause before a broken watch is begun again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A watch that says nothing for this long, not even where it is, is taken for broken.
const SILENCE: Duration = Duration::from_secs(90);
/// How many changes may wait for a slow reader.
const QUEUE: usize = 256;

/// What happened to a collection.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An object exists, with this content.
    Applied(Value),
    /// An object is gone; its last known content.
    Deleted(Value),
    /// Everything that exists has been told.
    Synced,
}

/// The reader went away.
struct Gone;

pub(super) fn start(client: Client, collection: String, tasks: &Tasks) -> mpsc::Receiver<Event> {
    let (events, receiver) = mpsc::channel(QUEUE);
    tasks.spawn("watch", async move {
        let closed = events.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = follow(&client, &collection, &events) => {}
        }
    });
    receiver
}

async fn follow(client: &Client, collection: &str, events: &mpsc::Sender<Event>) {
    let mut known = Known::default();
    let mut pause = PAUSE.0;
    loop {
        match round(client, collection, &mut known, events).await {
            Ok(Err(Gone)) => return,
            // A watch that was begun and then ended is how API servers are; one that cannot begin is worth a word.
            Ok(Ok(())) => pause = PAUSE.0,
            Err(error) => {
                tracing::warn!(collection, %error, "watch failed; it will be begun again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

/// One list and the watch after it, until that ends.
async fn round(
    client: &Client,
    collection: &str,
    known: &mut Known,
    events: &mpsc::Sender<Event>,
) -> Result<Result<(), Gone>, Error> {
    let (items, version) = client.list_at(collection).await?;
    for event in known.replace(items).into_iter().chain([Event::Synced]) {
        if events.send(event).await.is_err() {
            return Ok(Err(Gone));
        }
    }
    let sep = if collection.contains('?') { '&' } else { '?' };
    let path = format!("{collection}{sep}watch=true&allowWatchBookmarks=true&resourceVersion={version}");
    let mut body = client.0.stream(&path).await?;
    let mut buffer = BytesMut::new();
    while let Ok(Some(frame)) = tokio::time::timeout(SILENCE, body.frame()).await {
        // A broken stream is begun again like an ended one.
        let Ok(Ok(data)) = frame.map(hyper::body::Frame::into_data) else {
            break;
        };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end);
            buffer.advance(1);
            match known.event(&line) {
                Read::Nothing => {}
                Read::Again(reason) => {
                    tracing::debug!(collection, reason, "watch is begun again");
                    return Ok(Ok(()));
                }
                Read::Event(event) => {
                    if events.send(event).await.is_err() {
                        return Ok(Err(Gone));
                    }
                }
            }
        }
    }
    Ok(Ok(()))
}

/// What the reader has been told, by namespace and name.
#[derive(Debug, Default)]
struct Known(BTreeMap<(String, String), Value>);

/// What one line of a watch means.
#[derive(Debug, PartialEq)]
enum Read {
    Event(Event),
    Nothing,
    Again(String),
}

impl Known {
    /// Takes a full list; says what differs from what was known.
    fn replace(&mut self, items: Vec<Value>) -> Vec<Event> {
        let next: BTreeMap<_, _> = items.into_iter().map(|item| (key(&item), item)).collect();
        let last = std::mem::take(&mut self.0);
        let gone = last.iter().filter(|(key, _)| !next.contains_key(*key));
        let mut events: Vec<Event> = gone.map(|(_, object)| Event::Deleted(object.clone())).collect();
        let changed = next.iter().filter(|(key, object)| last.get(*key) != Some(object));
        events.extend(changed.map(|(_, object)| Event::Applied(object.clone())));
        self.0 = next;
        events
    }

    fn event(&mut self, line: &[u8]) -> Read {
        let Ok(mut event) = serde_json::from_slice::<Value>(line) else {
            return Read::Again(format!("a line is no JSON: {:?}", String::from_utf8_lossy(line)));
        };
        let object = event["object"].take();
        match object::text(&event, "/type") {
            "ADDED" | "MODIFIED" => {
                self.0.insert(key(&object), object.clone());
                Read::Event(Event::Applied(object))
            }
            "DELETED" => {
                self.0.remove(&key(&object));
                Read::Event(Event::Deleted(object))
            }
            "BOOKMARK" => Read::Nothing,
            _ => Read::Again(object::text(&object, "/message").to_owned()),
        }
    }
}

fn key(object: &Value) -> (String, String) {
    (object::namespace(object).to_owned(), object::name(object).to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_new_list_tells_only_what_differs() {
        let pod = |name: &str, version: &str| json!({"metadata": {"name": name, "resourceVersion": version}});
        let mut known = Known::default();
        assert_eq!(known.replace(vec![pod("a", "1"), pod("b", "2")]).len(), 2);
        let events = known.replace(vec![pod("b", "3"), pod("c", "4")]);
        let deleted = Event::Deleted(pod("a", "1"));
        assert_eq!(events, [deleted, Event::Applied(pod("b", "3")), Event::Applied(pod("c", "4"))]);
    }

    #[test]
    fn lines_are_events() {
        let mut known = Known::default();
        let line = br#"{"type":"ADDED","object":{"metadata":{"name":"a"}}}"#;
        assert_eq!(known.event(line), Read::Event(Event::Applied(json!({"metadata": {"name": "a"}}))));
        assert_eq!(known.event(br#"{"type":"BOOKMARK","object":{}}"#), Read::Nothing);
        let error = br#"{"type":"ERROR","object":{"message":"too old"}}"#;
        assert_eq!(known.event(error), Read::Again("too old".to_owned()));
        assert!(matches!(known.event(b"{"), Read::Again(_)));
    }
}
