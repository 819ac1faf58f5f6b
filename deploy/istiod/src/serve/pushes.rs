//! The push log: the last changes of the resources that agents are sent, by name, and whether each client has
//! acknowledged them. `playground apply` reads it over HTTP on loopback to show the effect of a change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use isthmus_rt::task::Tasks;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::clusters::ClusterId;
use crate::snapshot::Snapshot;
use crate::translate::view::{Resources, View};

/// How many changes are remembered.
const REMEMBERED: usize = 256;
/// Where the log is read.
pub const PATH: &str = "/debug/pushes";

/// The log as it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pushes {
    /// The version of the last snapshot.
    pub number: u64,
    /// The last resource version that was taken into account, by cluster and kind.
    pub read: BTreeMap<String, BTreeMap<String, u64>>,
    /// The last changes, oldest first.
    pub changes: Vec<Change>,
    /// The connected clients.
    pub clients: Vec<Client>,
}

/// How the resources for the agents of one cluster changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When, as [`Pushes::number`].
    pub number: u64,
    /// Whose agents.
    pub cluster: String,
    /// Names of resources, with the last part of their type before them: `Address a/b`.
    pub added: Vec<String>,
    /// The same, of resources that have changed.
    pub changed: Vec<String>,
    /// The same, of resources that are no more.
    pub removed: Vec<String>,
}

/// One connected client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its node id.
    pub id: String,
    /// Its cluster.
    pub cluster: String,
    /// The version of the last snapshot that it has been sent completely.
    pub told: u64,
    /// How many responses it has neither acknowledged nor rejected yet.
    pub unanswered: usize,
}

/// The log as it is written. Clones are the same log.
#[derive(Debug, Clone, Default)]
pub(crate) struct PushLog(Arc<Mutex<LogState>>);

#[derive(Debug, Default)]
struct LogState {
    number: u64,
    read: BTreeMap<String, BTreeMap<String, u64>>,
    changes: VecDeque<Change>,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
}

/// One client's entry; dropping it says that the client is gone.
#[derive(Debug)]
pub(crate) struct Connected {
    log: PushLog,
    key: u64,
}

impl Pushes {
    /// Whether every client has been sent the last snapshot and has acknowledged or rejected it.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.clients.iter().all(|client| client.told >= self.number && client.unanswered == 0)
    }
}

// === impl PushLog ===

impl PushLog {
    /// Records a new snapshot and how it differs from the one before.
    pub(crate) fn published(&self, before: &Snapshot, now: &Snapshot) {
        let mut inner = self.lock();
        inner.number = now.number;
        inner.read = now.clusters.versions();
        for (cluster, view) in &now.views {
            let change = change(now.number, cluster, before.views.get(cluster), view);
            if change.added.len() + change.changed.len() + change.removed.len() > 0 {
                inner.changes.push_back(change);
            }
        }
        let surplus = inner.changes.len().saturating_sub(REMEMBERED);
        inner.changes.drain(..surplus);
    }

    /// A client has connected.
    pub(crate) fn connected(&self, id: &str, cluster: &ClusterId) -> Connected {
        let mut inner = self.lock();
        let key = inner.next_client;
        inner.next_client += 1;
        let client = Client { id: id.to_owned(), cluster: cluster.to_string(), ..Client::default() };
        inner.clients.insert(key, client);
        Connected { log: self.clone(), key }
    }

    fn show(&self) -> Pushes {
        let inner = self.lock();
        Pushes {
            number: inner.number,
            read: inner.read.clone(),
            changes: inner.changes.iter().cloned().collect(),
            clients: inner.clients.values().cloned().collect(),
        }
    }

    /// Serves the log.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(crate) async fn serve(&self, at: SocketAddr, tasks: &Tasks) -> anyhow::Result<()> {
        let listener = TcpListener::bind(at).await.with_context(|| format!("listening on {at}"))?;
        let (log, connections) = (self.clone(), tasks.clone());
        tasks.spawn("pushes", async move {
            // A reader whose connection could not be accepted tries again.
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let log = log.clone();
                connections.spawn("pushes", async move {
                    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                        let answer = log.answer(request.uri().path());
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    // A reader that closes its connection is no error of the server.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(())
    }

    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let body = (path == PATH).then(|| serde_json::to_vec(&self.show()).unwrap_or_default());
        let status = if body.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
        let mut response = Response::new(Full::new(body.unwrap_or_default().into()));
        *response.status_mut() = status;
        response
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        // Every write leaves the maps whole, so a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Connected ===

impl Connected {
    /// Records that the client has been sent a snapshot, and how many responses it has not answered.
    pub(crate) fn told(&self, number: u64, unanswered: usize) {
        if let Some(client) = self.log.lock().clients.get_mut(&self.key) {
            (client.told, client.unanswered) = (number, unanswered);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.log.lock().clients.remove(&self.key);
    }
}

fn change(number: u64, cluster: &ClusterId, before: Option<&View>, now: &View) -> Change {
    let nothing = View::default();
    let before = before.unwrap_or(&nothing);
    let mut change = Change {
        number,
        cluster: cluster.to_string(),
        added: Vec::new(),
        changed: Vec::new(),
        removed: Vec::new(),
    };
    let types =
        [("Address", &before.addresses, &now.addresses), ("Authorization", &before.policies, &now.policies)];
    for (kind, before, now) in types {
        let named = |name: &String| format!("{kind} {name}");
        for (name, resource) in now.all() {
            match before.get(name) {
                None => change.added.push(named(name)),
                Some(old) if old.version != resource.version => change.changed.push(named(name)),
                Some(_) => {}
            }
        }
        let names = |resources: &Resources| resources.all().keys().cloned().collect::<BTreeSet<_>>();
        change.removed.extend(names(before).difference(&names(now)).map(named));
    }
    change
}

#[cfg(test)]
mod tests {
    use isthmus_proto::workload::Workload;

    use super::*;

    fn known(number: u64, workloads: &[(&str, &str)]) -> Snapshot {
        let mut view = View::default();
        for (uid, name) in workloads {
            let (uid, name) = ((*uid).to_owned(), (*name).to_owned());
            view.addresses.add_workload(&Workload { uid, name, ..Workload::default() });
        }
        Snapshot { number, views: [(ClusterId("c".to_owned()), view)].into(), ..Snapshot::default() }
    }

    #[test]
    fn changes_are_named() {
        let log = PushLog::default();
        log.published(
            &known(1, &[("a", "x"), ("b", "x"), ("c", "x")]),
            &known(2, &[("b", "y"), ("c", "x"), ("d", "x")]),
        );
        log.published(&known(2, &[("a", "x")]), &known(3, &[("a", "x")]));
        let shown = log.show();
        let [change] = &shown.changes[..] else { panic!("{shown:?}") };
        assert_eq!((change.number, change.cluster.as_str()), (2, "c"));
        assert_eq!(change.added, ["Address d"]);
        assert_eq!(change.changed, ["Address b"]);
        assert_eq!(change.removed, ["Address a"]);
        assert_eq!(shown.number, 3);
    }

    #[test]
    fn it_is_settled_when_every_client_has_answered() {
        let log = PushLog::default();
        log.published(&known(1, &[]), &known(2, &[]));
        assert!(log.show().is_settled());
        let client = log.connected("z", &ClusterId("c".to_owned()));
        client.told(1, 0);
        assert!(!log.show().is_settled());
        client.told(2, 1);
        assert!(!log.show().is_settled());
        client.told(2, 0);
        assert!(log.show().is_settled());
        drop(client);
        assert!(log.show().clients.is_empty());
    }
}
