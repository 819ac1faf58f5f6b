//! The datagrams of one pod that wait for a server, or for the pod's workload. There is room for so many of them; when it
//! is used up, the oldest one to the server with the most gives way and gets no answer. A client repeats a datagram that
//! seems lost, but believes a failure; and a server that does not answer takes no room from the others.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The server that a client asked; `None` when it is not known and the agent's own are asked.
type Asked = Option<SocketAddr>;

/// The queries in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    limit: usize,
    queries: Mutex<Queries>,
}

#[derive(Debug, Default)]
struct Queries {
    next: u64,
    count: usize,
    /// By the server, in order of arrival. A dropped sender tells its query to give way.
    by_server: HashMap<Asked, BTreeMap<u64, oneshot::Sender<()>>>,
}

/// A query in flight, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<InFlight>,
    asked: Asked,
    id: u64,
    gives_way: oneshot::Receiver<()>,
}

impl InFlight {
    /// Room for `limit` queries, at least one.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.max(1), queries: Mutex::default() })
    }

    /// Admits a query to this server.
    pub(super) fn admit(self: &Arc<Self>, asked: Asked) -> Place {
        let mut queries = self.lock();
        if queries.count >= self.limit {
            queries.evict();
        }
        let (stays, gives_way) = oneshot::channel();
        let id = queries.next;
        queries.next += 1;
        queries.count += 1;
        queries.by_server.entry(asked).or_default().insert(id, stays);
        Place { all: Arc::clone(self), asked, id, gives_way }
    }

    fn lock(&self) -> MutexGuard<'_, Queries> {
        // No update can panic half-way.
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queries {
    /// Drops the oldest query to the server with the most.
    fn evict(&mut self) {
        let most = self.by_server.iter().max_by_key(|(_, queries)| queries.len());
        let oldest = most.and_then(|(asked, queries)| Some((*asked, *queries.keys().next()?)));
        if let Some((asked, id)) = oldest {
            self.remove(asked, id);
        }
    }

    fn remove(&mut self, asked: Asked, id: u64) {
        let Some(queries) = self.by_server.get_mut(&asked) else { return };
        if queries.remove(&id).is_some() {
            self.count -= 1;
        }
        if queries.is_empty() {
            self.by_server.remove(&asked);
        }
    }
}

impl Place {
    /// Returns when the query has to give way to another one.
    pub(super) async fn gives_way(&mut self) {
        // The sender never sends: it is dropped.
        let _ = (&mut self.gives_way).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().remove(self.asked, self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(last: u8) -> Asked {
        Some(SocketAddr::from(([10, 0, 0, last], 53)))
    }

    fn has_to_go(place: &mut Place) -> bool {
        place.gives_way.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_query_to_the_busiest_server_gives_way() {
        let all = InFlight::new(4);
        let mut silent: Vec<_> = (0..3).map(|_| all.admit(server(1))).collect();
        let mut good = vec![all.admit(server(2))];
        good.push(all.admit(server(2)));
        assert!(has_to_go(&mut silent[0]) && !has_to_go(&mut silent[1]));
        good.push(all.admit(server(3)));
        let gone: Vec<bool> = silent.iter_mut().chain(&mut good).map(has_to_go).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 2, "{gone:?}");
        drop((silent, good));
        let queries = all.lock();
        assert_eq!((queries.count, queries.by_server.len()), (0, 0));
    }

    #[test]
    fn a_place_that_is_given_back_is_free() {
        let all = InFlight::new(1);
        drop(all.admit(None));
        let mut first = all.admit(None);
        assert!(!has_to_go(&mut first));
        let _second = all.admit(server(1));
        assert!(has_to_go(&mut first));
        drop(first);
        assert_eq!(all.lock().count, 1, "what gave way is not counted down twice");
    }
}
