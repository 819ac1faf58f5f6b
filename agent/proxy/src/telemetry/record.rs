//! The record of one connection: counts it in the metrics and writes its access-log events, each exactly once, even
//! when the connection's task is dropped.

mod parts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isthmus_hbone::copy::{ByteCounter, CopyOutcome, Side};
use isthmus_model::{Authority, SpiffeId, Text, Workload};
use isthmus_rt::metrics::{Count as Series, Hashed, LabelHash};
use tokio::time::Instant;

pub(crate) use self::parts::RecordParts;
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
    conn: Box<RecordedConn>,
    metrics: Arc<Metrics>,
    started: Instant,
    /// Once it is opened: its counters, and the hash of its labels, which do not change any more.
    opened: Option<(Traffic, LabelHash)>,
    /// Whether a drop is logged even if the connection was not opened.
    log_on_drop: bool,
    closed: bool,
    connect_summary: Option<Box<ConnectSummary>>,
    /// How often the connection came from another process.
    handovers: u32,
}

/// What is known of the connection: the labels as metrics need them, and what only the access log has.
#[derive(Debug)]
struct RecordedConn {
    labels: Labels,
    direction: Direction,
    src: SocketAddr,
    src_pod: Text,
    dst: SocketAddr,
    dst_pod: Text,
    hbone: Option<Authority>,
}

/// Attempts to connect, if there was more than one or retries were given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectSummary {
    pub(crate) tries: u32,
    /// Upstreams of the failed attempts, with their causes and ejections.
    pub(crate) tried: String,
    /// Why no further attempt was made.
    pub(crate) gave_up: Option<GiveUpReason>,
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
    /// What a certificate alone proves.
    pub(crate) fn proven(identity: &SpiffeId) -> Self {
        let mut info = Self::new(None, Some(identity.clone()));
        info.party.namespace = identity.namespace.clone();
        info
    }

    /// A workload, if known; `identity` is the authenticated or expected one.
    pub(crate) fn new(workload: Option<&Workload>, identity: Option<SpiffeId>) -> Self {
        let party = workload.map(Party::of).unwrap_or_default().with_principal(identity);
        let pod = workload.map(|workload| workload.name.clone()).unwrap_or_default();
        Self { party, pod }
    }
}

// === impl RecordedConn ===

impl From<Opening> for RecordedConn {
    fn from(opening: Opening) -> Self {
        let Opening { reporter, direction, src, source, dst, hbone, service, destination, mutual_tls } =
            opening;
        let labels = Labels {
            reporter,
            source: source.party,
            service: service.unwrap_or_default(),
            destination: destination.party,
            flag: ResponseFlag::None,
            mutual_tls,
        };
        Self { labels, direction, src, src_pod: source.pod, dst, dst_pod: destination.pod, hbone }
    }
}

// === impl Record ===

impl Record {
    /// Starts the duration. Nothing is counted before [`Self::open`].
    pub(crate) fn new(metrics: Arc<Metrics>, opening: Opening) -> Self {
        Self {
            conn: Box::new(opening.into()),
            metrics,
            started: Instant::now(),
            opened: None,
            log_on_drop: false,
            closed: false,
            connect_summary: None,
            handovers: 0,
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
        self.conn.dst
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
        if self.opened.is_none() {
            let destination = &mut self.conn.labels.destination;
            if let Some(claimed) = claimed {
                // Baggage has no pod name; the log has the controller's.
                self.conn.dst_pod = claimed.party.workload.clone();
                *destination = claimed.party;
            }
            destination.principal = authenticated;
        }
    }

    /// Replaces the client's labels. No effect once the connection is opened.
    pub(crate) fn set_source(&mut self, source: EndpointInfo) {
        if self.opened.is_none() {
            self.conn.src_pod = source.pod;
            self.conn.labels.source = source.party;
        }
    }

    /// Counts and logs the connection as opened, on the first call; returns its byte counters.
    pub(crate) fn open(&mut self) -> Traffic {
        self.opened().0
    }

    fn opened(&mut self) -> (Traffic, LabelHash) {
        if let Some(opened) = &self.opened {
            return opened.clone();
        }
        let opened = self.count_opened();
        self.opened = Some(opened.clone());
        if access_log::logs_opened() {
            access_log::opened(&self.line());
        }
        opened
    }

    fn count_opened(&self) -> (Traffic, LabelHash) {
        self.metrics.opened.get_or_create_hashed(Hashed::new(&self.conn.labels)).inc();
        self.traffic(Arc::default())
    }

    /// The counters of a connection that has carried so much.
    fn traffic(&self, totals: Arc<[AtomicU64; 2]>) -> (Traffic, LabelHash) {
        let labels = Hashed::new(&self.conn.labels);
        let sent = self.metrics.sent.get_or_create_hashed(labels);
        let received = self.metrics.received.get_or_create_hashed(labels);
        // The metric `sent` counts bytes to the client. The local workload is the client outbound, the server inbound.
        let (from_local, to_local) = match self.conn.direction {
            Direction::Outbound => (received, sent),
            Direction::Inbound => (sent, received),
        };
        (Traffic { from_local, to_local, totals }, labels.hash())
    }

    /// Closes the record with the outcome of the copy.
    pub(crate) fn finish(self, ended: CopyOutcome) {
        let by = match (ended.closed_by, self.conn.direction) {
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
        let (traffic, hash) = self.opened();
        let flag = error.map(Error::flag).unwrap_or_default();
        let is_as_opened = flag == self.conn.labels.flag;
        self.conn.labels.flag = flag;
        let labels = &self.conn.labels;
        let labels = if is_as_opened { Hashed::again(labels, hash) } else { Hashed::new(labels) };
        self.metrics.closed.get_or_create_hashed(labels).inc();
        if error.is_some() {
            self.metrics.failed.get_or_create_hashed(labels).inc();
        }
        if access_log::logs_closed(error.is_some()) && error.is_none_or(|error| self.admits_line(error)) {
            self.log_closed(&traffic, error, closed_by);
        }
    }

    /// What this agent did itself is logged for each connection.
    fn admits_line(&self, error: &Error) -> bool {
        let RecordedConn { labels, direction, src, dst, .. } = &*self.conn;
        let own = matches!(error, Error::Drained | Error::Revoked);
        own || self.metrics.admits_line((*src, *dst, *direction), labels.flag.as_str(), || error.to_string())
    }

    fn log_closed(&self, traffic: &Traffic, error: Option<&Error>, closed_by: Option<&str>) {
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
                handovers: (self.handovers > 0).then_some(self.handovers),
            },
        );
    }

    fn line(&self) -> Line<'_> {
        let RecordedConn { labels, direction, src, src_pod, dst, dst_pod, hbone } = &*self.conn;
        let identity =
            |party: &Party| party.principal.as_ref().filter(|_| labels.mutual_tls).map(ToString::to_string);
        let (source, destination) = (&labels.source, &labels.destination);
        Line {
            src: *src,
            src_workload: pod_of(src_pod, source),
            src_namespace: non_empty(source.namespace.as_str()),
            src_identity: identity(source),
            src_cluster: non_empty(source.cluster.as_str()),
            dst: *dst,
            dst_hbone: hbone.as_ref(),
            dst_service: non_empty(labels.service.hostname.as_str()),
            dst_workload: pod_of(dst_pod, destination),
            dst_namespace: non_empty(destination.namespace.as_str()),
            dst_identity: identity(destination),
            dst_cluster: non_empty(destination.cluster.as_str()),
            direction: *direction,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.closed && (self.log_on_drop || self.opened.is_some()) {
            self.close(Some(&Error::Drained), None);
        }
    }
}

fn pod_of<'a>(pod: &'a Text, party: &'a Party) -> Option<&'a str> {
    [pod, &party.canonical_service].into_iter().find_map(|name| non_empty(name.as_str()))
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
            Some(baggage::from_baggage(
                "k8s.deployment.name=web-v1,service.name=web,service.version=v1",
                None,
            )),
        );
        assert_eq!(record.line().dst_workload, Some("web-v1"));
    }
}
