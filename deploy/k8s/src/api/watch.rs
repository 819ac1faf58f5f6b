//! A watch: what a reader is told about a collection after a revision, as lines of JSON. The cursor is pure over the
//! store; the stream around it waits.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::error::Error;
use super::selector::Selector;
use super::shape::Shape;
use super::store::{Change, Logged, Store, TooOld};
use super::target::Query;
use crate::manifest::{Kind, object};

/// How often a quiet watch says where it is.
const BOOKMARKS: Duration = Duration::from_secs(20);
/// How long a watch lasts when the reader does not say.
const LIFE: Duration = Duration::from_secs(1800);

/// What a reader wants to follow.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The collection's kind.
    pub(super) kind: &'static Kind,
    /// One namespace, or all.
    pub(super) namespace: Option<String>,
    /// Which of its objects.
    pub(super) selector: Selector,
    /// How objects are shown.
    pub(super) shape: Shape,
}

/// A watch under way.
#[derive(Debug)]
pub(super) struct Cursor {
    wanted: Wanted,
    at: u64,
    bookmarks: bool,
    lines: VecDeque<Bytes>,
    ended: bool,
}

// === impl Wanted ===

impl Wanted {
    /// Whether an object is one of those.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let namespace = self.namespace.as_deref();
        namespace.is_none_or(|wanted| wanted == object::namespace(object)) && self.selector.matches(object)
    }
}

// === impl Cursor ===

impl Cursor {
    /// Begins a watch as the query asks.
    ///
    /// # Errors
    /// When the version is no number or its changes are forgotten.
    pub(super) fn begin(store: &Store, wanted: Wanted, query: &Query) -> Result<Self, Error> {
        let from = query.number("resourceVersion")?.filter(|version| *version != 0);
        let initial = query.is("sendInitialEvents");
        let bookmarks = query.is("allowWatchBookmarks");
        let mut cursor = Self { wanted, at: 0, bookmarks, lines: VecDeque::new(), ended: false };
        match from {
            Some(version) if !initial => {
                cursor.at = version;
                // A reader that is too far behind is told at once, with a status it knows.
                store
                    .since(cursor.wanted.kind, version)
                    .map_err(|TooOld(oldest)| Error::Expired(version, oldest))?;
            }
            _ => {
                let kind = cursor.wanted.kind;
                let (objects, revision) = store.transaction(|tx| (tx.list(kind, None), tx.revision()));
                cursor.at = revision;
                for object in &objects {
                    if cursor.wanted.matches(object) {
                        cursor.push("ADDED", object);
                    }
                }
                if initial && bookmarks {
                    cursor.bookmark(true);
                }
            }
        }
        Ok(cursor)
    }

    /// Takes what has happened since the last time.
    fn advance(&mut self, store: &Store) {
        match store.since(self.wanted.kind, self.at) {
            Ok((changes, revision)) => {
                for logged in &changes {
                    self.take(logged);
                }
                self.at = self.at.max(revision);
            }
            Err(TooOld(oldest)) => {
                let status = Error::Expired(self.at, oldest).status();
                self.lines.push_back(line("ERROR", &status));
                self.ended = true;
            }
        }
    }

    /// A change, as it looks through the selector: an object that begins or ends to match is added or deleted.
    fn take(&mut self, logged: &Logged) {
        let was = logged.before.as_ref().is_some_and(|before| self.wanted.matches(before));
        let is = logged.change != Change::Deleted && self.wanted.matches(&logged.object);
        match (was, is) {
            (false, true) => self.push("ADDED", &logged.object),
            (true, true) => self.push("MODIFIED", &logged.object),
            (true, false) => self.push("DELETED", &logged.object),
            (false, false) => {}
        }
    }

    fn push(&mut self, kind: &str, object: &Value) {
        self.lines.push_back(line(kind, &self.wanted.shape.of(object)));
    }

    fn bookmark(&mut self, initial_end: bool) {
        let (kind, at) = (self.wanted.kind, self.at.to_string());
        let mut object = json!({
            "kind": kind.kind, "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": at, "creationTimestamp": null},
        });
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.push("BOOKMARK", &object);
    }

    /// The watch as the frames of a body, until the reader's time is up.
    pub(super) fn into_stream(
        self,
        store: Arc<Store>,
        life: Option<u64>,
    ) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send {
        let end = Instant::now() + life.map_or(LIFE, Duration::from_secs);
        let changes = store.subscribe();
        let state = (self, store, changes);
        futures_util::stream::unfold(state, move |(mut cursor, store, mut changes)| async move {
            loop {
                if let Some(line) = cursor.lines.pop_front() {
                    return Some((Ok(Frame::data(line)), (cursor, store, changes)));
                }
                if cursor.ended {
                    return None;
                }
                // Seen before it is read, so that a change between the two is not slept through.
                changes.borrow_and_update();
                cursor.advance(&store);
                if !cursor.lines.is_empty() || cursor.ended {
                    continue;
                }
                tokio::select! {
                    changed = changes.changed() => changed.ok()?,
                    () = tokio::time::sleep_until(end) => return None,
                    () = tokio::time::sleep(BOOKMARKS), if cursor.bookmarks => cursor.bookmark(false),
                }
            }
        })
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::store::Key;

    fn wanted(labels: &str) -> Wanted {
        Wanted {
            kind: Kind::named("Pod").unwrap(),
            namespace: Some("a".to_owned()),
            selector: Selector::parse(labels, "").unwrap(),
            shape: Shape::Full,
        }
    }

    fn put(store: &Store, namespace: &str, name: &str, app: &str) {
        let key = Key::new(Kind::named("Pod").unwrap(), namespace, name);
        let pod = json!({"metadata": {"name": name, "namespace": namespace, "labels": {"app": app}}});
        store.transaction(|tx| tx.put(&key, pod));
    }

    fn told(cursor: &mut Cursor) -> Vec<(String, String)> {
        let read = |line: Bytes| {
            let event: Value = serde_json::from_slice(&line).unwrap();
            (
                object::text(&event, "/type").to_owned(),
                object::text(&event, "/object/metadata/name").to_owned(),
            )
        };
        cursor.lines.drain(..).map(read).collect()
    }

    fn pair(kind: &str, name: &str) -> (String, String) {
        (kind.to_owned(), name.to_owned())
    }

    #[test]
    fn what_begins_and_ends_to_match_is_added_and_deleted() {
        let store = Store::new();
        put(&store, "a", "p", "x");
        let mut cursor = Cursor::begin(&store, wanted("app=x"), &Query::default()).unwrap();
        assert_eq!(told(&mut cursor), [pair("ADDED", "p")]);
        put(&store, "a", "p", "y");
        put(&store, "a", "q", "x");
        put(&store, "b", "r", "x");
        cursor.advance(&store);
        assert_eq!(told(&mut cursor), [pair("DELETED", "p"), pair("ADDED", "q")]);
    }

    #[test]
    fn initial_events_end_with_a_bookmark() {
        let store = Store::new();
        put(&store, "a", "p", "x");
        let query = Query::parse("sendInitialEvents=true&allowWatchBookmarks=true&resourceVersion=0");
        let mut cursor = Cursor::begin(&store, wanted(""), &query).unwrap();
        let last: Value = serde_json::from_slice(cursor.lines.back().unwrap()).unwrap();
        assert_eq!(last["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
        assert_eq!(told(&mut cursor), [pair("ADDED", "p"), pair("BOOKMARK", "")]);
    }

    #[test]
    fn too_old_a_version_is_gone() {
        let store = Store::new();
        for at in 0..5000 {
            put(&store, "a", "p", &at.to_string());
        }
        let begun = Cursor::begin(&store, wanted(""), &Query::parse("resourceVersion=5"));
        assert!(matches!(begun, Err(Error::Expired(5, _))));
    }

    #[tokio::test]
    async fn a_waiting_stream_wakes_for_a_change() {
        use futures_util::StreamExt as _;
        let store = Arc::new(Store::new());
        let cursor = Cursor::begin(&store, wanted(""), &Query::default()).unwrap();
        let mut stream = Box::pin(cursor.into_stream(Arc::clone(&store), None));
        let (line, ()) = tokio::join!(stream.next(), async {
            tokio::task::yield_now().await;
            put(&store, "a", "p", "x");
        });
        let data = line.unwrap().unwrap().into_data().unwrap();
        assert!(String::from_utf8_lossy(&data).contains("\"ADDED\""));
    }
}
