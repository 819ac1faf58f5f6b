//! The record of one connection: counts it in the metrics and writes its access-log events, each exactly once, even
//! when the connection's task is dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isthmus_hbone::copy::{ByteCounter, CopyOutcome, Side};
use isthmus_model::{Authority, SpiffeId, Text, Workload};
use isthmus_rt::metrics::Count as Series;
use tokio::time::Instant;

use super::access_log::{self, Ending, Line};
use super::labels::{Labels, Party, ServiceLabels};
use super::metrics::Metrics;
use crate::error::Error;
use crate::retry::{GiveUpReason, RetryState};
use crate::types::{Direction, Reporter, ResponseFlag};

/// Source or destination of a connection: its labels, and the pod's name, which only the access log has.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndpointInfo {
    pub(crate) party: Party,
    pub(crate) pod: Text,
}

/// What is known of a connection when its record starts.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) reporter: Reporter,
    pub(crate) direction: Direction,
    pub(crate) src: SocketAddr,
    pub(crate) source: EndpointInfo,
    pub(crate) dst: SocketAddr,
    /// The authority of the CONNECT, for HBONE.
    pub(crate) hbone: Option<Authority>,
    pub(crate) service: Option<ServiceLabels>,
    pub(crate) destination: EndpointInfo,
    pub(crate) mutual_tls: bool,
}

/// The record of a connection. Dropped before [`Self::finish`] or [`Self::fail`], the connection is logged as drained.
#[derive(Debug)]
pub(crate) struct Record {
    /// Boxed: the record is moved through several futures, each of which would reserve space for it.
    opening: Box<Opening>,
    metrics: Arc<Metrics>,
    started: Instant,
    traffic: Option<Traffic>,
    /// Whether a drop is logged even if the connection was not opened.
    log_on_drop: bool,
    closed: bool,
    connect_summary: Option<Box<ConnectSummary>>,
}

/// Attempts to connect, if there was more than one or retries were given up.
#[derive(Debug)]
struct ConnectSummary {
    tries: u32,
    /// Upstreams of the failed attempts, with their causes and ejections.
    tried: String,
    /// Why no further attempt was made.
    gave_up: Option<GiveUpReason>,
}

/// Byte counters of an open connection.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    from_local: Series,
    to_local: Series,
    totals: Arc<[AtomicU64; 2]>,
}

// === impl EndpointInfo ===

impl EndpointInfo {
    /// A workload, if known; `identity` is the authenticated or expected one.
    pub(crate) fn new(workload: Option<&Workload>, identity: Option<SpiffeId>) -> Self {
        let party = workload.map(Party::of).unwrap_or_default().with_principal(identity);
        let pod = workload.map(|workload| workload.name.clone()).unwrap_or_default();
        Self { party, pod }
    }

    fn pod(&self) -> Option<&str> {
        [&self.pod, &self.party.canonical_service].into_iter().find_map(|name| non_empty(name.as_str()))
    }
}

// === impl Opening ===

impl Opening {
    fn labels(&self, flag: ResponseFlag) -> Labels {
        Labels {
            reporter: self.reporter,
            source: self.source.party.clone(),
            service: self.service.clone().unwrap_or_default(),
            destination: self.destination.party.clone(),
            flag,
            mutual_tls: self.mutual_tls,
        }
    }
}

// === impl Record ===

impl Record {
    /// Starts the duration. Nothing is counted before [`Self::open`].
    pub(crate) fn new(metrics: Arc<Metrics>, opening: Opening) -> Self {
        Self {
            opening: Box::new(opening),
            metrics,
            started: Instant::now(),
            traffic: None,
            log_on_drop: false,
            closed: false,
            connect_summary: None,
        }
    }

    /// Logs the connection as drained if it is dropped before it was opened.
    pub(crate) fn logged_on_drop(mut self) -> Self {
        self.log_on_drop = true;
        self
    }

    /// Sets the start of the duration.
    pub(crate) fn with_start(mut self, started: Instant) -> Self {
        self.started = started;
        self
    }

    /// Drops the record without logging: a retry's record replaces it.
    pub(crate) fn discard(mut self) {
        self.closed = true;
    }

    /// The destination address.
    pub(crate) fn dst(&self) -> SocketAddr {
        self.opening.dst
    }

    /// Sets the attempts to connect, to be logged when the connection closes.
    pub(crate) fn set_connect_summary(&mut self, tries: &RetryState, gave_up: Option<GiveUpReason>) {
        let (tries, tried) = tries.summary();
        if tries > 1 || gave_up.is_some() {
            self.connect_summary = Some(Box::new(ConnectSummary { tries, tried: tried.to_owned(), gave_up }));
        }
    }

    /// Replaces the server's labels by those of its baggage, and its identity by the authenticated one. No effect
    /// once the connection is opened: its series must not change.
    pub(crate) fn update_destination(
        &mut self,
        authenticated: Option<SpiffeId>,
        claimed: Option<EndpointInfo>,
    ) {
        if self.traffic.is_none() {
            if let Some(claimed) = claimed {
                // Baggage has no pod name; the log has the controller's.
                let pod = claimed.party.workload.clone();
                self.opening.destination = EndpointInfo { pod, ..claimed };
            }
            self.opening.destination.party.principal = authenticated;
        }
    }

    /// Counts and logs the connection as opened, on the first call; returns its byte counters.
    pub(crate) fn open(&mut self) -> Traffic {
        if let Some(traffic) = &self.traffic {
            return traffic.clone();
        }
        let labels = self.opening.labels(ResponseFlag::None);
        self.metrics.opened.get_or_create(&labels).inc();
        let (sent, received) =
            (self.metrics.sent.get_or_create(&labels), self.metrics.received.get_or_create(&labels));
        // The metric `sent` counts bytes to the client. The local workload is the client outbound, the server inbound.
        let (from_local, to_local) = match self.opening.direction {
            Direction::Outbound => (received, sent),
            Direction::Inbound => (sent, received),
        };
        let traffic = Traffic { from_local, to_local, totals: Arc::default() };
        if access_log::logs_opened() {
            access_log::opened(&self.line());
        }
        self.traffic.insert(traffic).clone()
    }

    /// Closes the record with the outcome of the copy.
    pub(crate) fn finish(self, ended: CopyOutcome) {
        let by = match (ended.closed_by, self.opening.direction) {
            (Side::Local, Direction::Outbound) | (Side::Remote, Direction::Inbound) => "client",
            (Side::Remote, Direction::Outbound) | (Side::Local, Direction::Inbound) => "server",
        };
        match ended.error {
            None => self.end(None, Some(by)),
            Some(error) if error.is_peer_revoked() => self.fail(&Error::Revoked),
            Some(error) => self.end(Some(&Error::Copy(error)), Some(by)),
        }
    }

    /// Closes the record with an error.
    pub(crate) fn fail(self, error: &Error) {
        match error {
            Error::Open(open) if open.is_peer_revoked() => self.fail(&Error::Revoked),
            Error::Revoked => self.end(Some(error), Some("revocation")),
            _ => self.end(Some(error), None),
        }
    }

    fn end(mut self, error: Option<&Error>, closed_by: Option<&str>) {
        self.close(error, closed_by);
    }

    fn close(&mut self, error: Option<&Error>, closed_by: Option<&str>) {
        self.closed = true;
        let traffic = self.open();
        let labels = self.opening.labels(error.map(Error::flag).unwrap_or_default());
        self.metrics.closed.get_or_create(&labels).inc();
        if error.is_some() {
            self.metrics.failed.get_or_create(&labels).inc();
        }
        let [from_local, to_local] = &*traffic.totals;
        let summary = self.connect_summary.as_deref();
        access_log::closed(
            &self.line(),
            &Ending {
                bytes_sent: from_local.load(Ordering::Relaxed),
                bytes_recv: to_local.load(Ordering::Relaxed),
                duration: self.started.elapsed(),
                error: error.map(ToString::to_string),
                closed_by,
                policy: error.and_then(Error::policy).map(ToString::to_string),
                tries: summary.map(|summary| summary.tries),
                tried: summary.and_then(|summary| non_empty(&summary.tried)),
                gave_up: summary.and_then(|summary| summary.gave_up).map(GiveUpReason::as_str),
            },
        );
    }

    fn line(&self) -> Line<'_> {
        let Opening { source, destination, mutual_tls, .. } = &*self.opening;
        let identity = |endpoint: &EndpointInfo| {
            endpoint.party.principal.as_ref().filter(|_| *mutual_tls).map(ToString::to_string)
        };
        Line {
            src: self.opening.src,
            src_workload: source.pod(),
            src_namespace: non_empty(source.party.namespace.as_str()),
            src_identity: identity(source),
            src_cluster: non_empty(source.party.cluster.as_str()),
            dst: self.opening.dst,
            dst_hbone: self.opening.hbone.as_ref(),
            dst_service: self.opening.service.as_ref().map(|service| service.hostname.as_str()),
            dst_workload: destination.pod(),
            dst_namespace: non_empty(destination.party.namespace.as_str()),
            dst_identity: identity(destination),
            dst_cluster: non_empty(destination.party.cluster.as_str()),
            direction: self.opening.direction,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.closed && (self.log_on_drop || self.traffic.is_some()) {
            self.close(Some(&Error::Drained), None);
        }
    }
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

// === impl Traffic ===

impl ByteCounter for Traffic {
    fn sent(&self, n: u64) {
        self.from_local.inc_by(n);
        self.totals[0].fetch_add(n, Ordering::Relaxed);
    }

    fn received(&self, n: u64) {
        self.to_local.inc_by(n);
        self.totals[1].fetch_add(n, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::baggage;

    #[test]
    fn a_server_known_by_baggage_only_is_logged_by_its_controller() {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let opening = Opening {
            reporter: Reporter::Source,
            direction: Direction::Outbound,
            src: address,
            source: EndpointInfo::new(None, None),
            dst: address,
            hbone: None,
            service: None,
            destination: EndpointInfo::new(None, None),
            mutual_tls: true,
        };
        let metrics = Metrics::register(&isthmus_rt::metrics::Registry::default());
        let mut record = Record::new(metrics, opening);
        record.update_destination(
            None,
            Some(baggage::from_baggage("k8s.deployment.name=web-v1,service.name=web,service.version=v1")),
        );
        assert_eq!(record.line().dst_workload, Some("web-v1"));
    }
}
