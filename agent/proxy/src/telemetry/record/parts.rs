//! The record of an open connection as plain values, for another process to go on with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isthmus_model::{Authority, Text};
use tokio::time::Instant;

use super::{ConnectSummary, Record, RecordedConn};
use crate::telemetry::labels::Labels;
use crate::telemetry::metrics::Metrics;
use crate::types::Direction;

/// A record so far. What the metrics of this process have counted stays there: the connection counts as opened once, and
/// each byte once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordParts {
    pub(crate) labels: Labels,
    pub(crate) direction: Direction,
    pub(crate) src: SocketAddr,
    pub(crate) src_pod: Text,
    pub(crate) dst: SocketAddr,
    pub(crate) dst_pod: Text,
    pub(crate) hbone: Option<Authority>,
    /// Since the connection began.
    pub(crate) elapsed: Duration,
    /// Bytes from the local workload, and to it.
    pub(crate) carried: [u64; 2],
    pub(crate) handovers: u32,
    pub(crate) connect_summary: Option<ConnectSummary>,
}

impl Record {
    /// Takes the record of an open connection apart; nothing is logged.
    pub(crate) fn into_parts(mut self) -> RecordParts {
        let (traffic, _) = self.opened();
        self.closed = true;
        let RecordedConn { labels, direction, src, src_pod, dst, dst_pod, hbone } = &*self.conn;
        RecordParts {
            labels: labels.clone(),
            direction: *direction,
            src: *src,
            src_pod: src_pod.clone(),
            dst: *dst,
            dst_pod: dst_pod.clone(),
            hbone: hbone.clone(),
            elapsed: self.started.elapsed(),
            carried: [0, 1].map(|at| traffic.totals[at].load(Ordering::Relaxed)),
            handovers: self.handovers,
            connect_summary: self.connect_summary.as_deref().cloned(),
        }
    }

    /// Goes on with the record of a connection that is open. It is not counted as opened again.
    pub(crate) fn resume(metrics: Arc<Metrics>, parts: RecordParts) -> Self {
        let RecordParts {
            labels,
            direction,
            src,
            src_pod,
            dst,
            dst_pod,
            hbone,
            elapsed,
            carried,
            handovers,
            connect_summary,
        } = parts;
        let now = Instant::now();
        let mut new = Self {
            conn: Box::new(RecordedConn { labels, direction, src, src_pod, dst, dst_pod, hbone }),
            metrics,
            started: now.checked_sub(elapsed).unwrap_or(now),
            opened: None,
            log_on_drop: true,
            closed: false,
            connect_summary: connect_summary.map(Box::new),
            handovers,
        };
        new.opened = Some(new.traffic(Arc::new(carried.map(AtomicU64::new))));
        new
    }
}
