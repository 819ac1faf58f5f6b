//! The open connections of one endpoint: how many there may be, and which one is closed for a new one. Clients do not
//! authenticate, so no source may keep another one out.

use std::collections::HashMap;
use std::net::IpAddr;

use tokio::sync::oneshot;

/// Connections of one endpoint at most.
const LIMIT: usize = 64;

/// The open connections, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Connections(Vec<(IpAddr, oneshot::Sender<()>)>);

impl Connections {
    /// Adds one. It is to be closed when what is returned resolves: for a later one, when there are too many, the oldest of
    /// the source with the most.
    pub(super) fn add(&mut self, source: IpAddr) -> oneshot::Receiver<()> {
        self.0.retain(|(_, closed)| !closed.is_closed());
        if self.0.len() >= LIMIT {
            self.close_one();
        }
        let (close, closed) = oneshot::channel();
        self.0.push((source.to_canonical(), close));
        closed
    }

    fn close_one(&mut self) {
        let mut counts = HashMap::new();
        for (source, _) in &self.0 {
            *counts.entry(*source).or_insert(0_usize) += 1;
        }
        let most = counts.values().copied().max().unwrap_or_default();
        if let Some(at) = self.0.iter().position(|(source, _)| counts[source] == most) {
            // Dropping the sender resolves the receiver.
            drop(self.0.remove(at));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_with_the_most_makes_room() {
        let mut connections = Connections::default();
        let source = |last: u8| IpAddr::from([10, 0, 0, last]);
        let mut kubelet = connections.add(source(1));
        let mut greedy: Vec<_> = (0..200).map(|_| connections.add(source(2))).collect();
        let mut prometheus = connections.add(source(3));
        assert!(kubelet.try_recv() == Err(oneshot::error::TryRecvError::Empty), "the oldest of all stays");
        assert!(prometheus.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let open = greedy
            .iter_mut()
            .map(|closed| closed.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty));
        let open: Vec<_> = open.collect();
        assert_eq!(open.iter().filter(|open| **open).count(), LIMIT - 2);
        assert!(!open[0] && open[199], "its oldest were closed");
    }

    #[test]
    fn connections_that_have_ended_do_not_count() {
        let mut connections = Connections::default();
        let mut first = connections.add(IpAddr::from([10, 0, 0, 1]));
        for _ in 0..10 * LIMIT {
            drop(connections.add(IpAddr::from([10, 0, 0, 2])));
        }
        assert!(first.try_recv() == Err(oneshot::error::TryRecvError::Empty));
    }
}
