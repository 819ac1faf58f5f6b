//! The record of one connection: what the metrics count of it and what the access log says of it, each exactly once.

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

/// One end of a connection: its labels and the name of its pod, which only the log has.
#[derive(Debug, Clone, Default)]
pub(crate) struct End {
    pub(crate) party: Party,
    pub(crate) pod: Text,
}

/// What is known of a connection when it is opened.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) reporter: Reporter,
    pub(crate) direction: Direction,
    pub(crate) src: SocketAddr,
    pub(crate) source: End,
    pub(crate) dst: SocketAddr,
    /// The authority, when the connection is carried by HBONE.
    pub(crate) hbone: Option<Authority>,
    pub(crate) service: Option<ServiceLabels>,
    pub(crate) destination: End,
    pub(crate) mutual_tls: bool,
}

/// A connection that is being recorded. Dropped without an ending, it was cut by a shutdown.
#[derive(Debug)]
pub(crate) struct Record {
    /// Boxed: a record is handed from step to step, and each step's future would have room for all of it.
    opening: Box<Opening>,
    metrics: Arc<Metrics>,
    started: Instant,
    traffic: Option<Traffic>,
    /// Whether something is said of it even when it was never opened.
    begun: bool,
    ended: bool,
    story: Option<Box<Story>>,
}

/// What came of trying to connect, where that is worth a word.
#[derive(Debug)]
struct Story {
    tries: u32,
    /// Who was tried and refused, and who was put out for it.
    tried: String,
    /// Why nobody else was tried.
    gave_up: Option<GiveUpReason>,
}

/// Counts bytes while they flow.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    from_local: Series,
    to_local: Series,
    totals: Arc<[AtomicU64; 2]>,
}

// === impl End ===

impl End {
    /// A workload; `identity` is what it proved or is expected to prove.
    pub(crate) fn of(workload: Option<&Workload>, identity: Option<SpiffeId>) -> Self {
        let party = workload.map(Party::of).unwrap_or_default().with_principal(identity);
        let pod = workload.map(|workload| workload.name.clone()).unwrap_or_default();
        Self { party, pod }
    }

    fn pod(&self) -> Option<&str> {
        [&self.pod, &self.party.canonical_service].into_iter().find_map(|name| shown(name.as_str()))
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
    /// Starts the clock. Nothing is counted before [`Self::open`].
    pub(crate) fn new(metrics: Arc<Metrics>, opening: Opening) -> Self {
        Self {
            opening: Box::new(opening),
            metrics,
            started: Instant::now(),
            traffic: None,
            begun: false,
            ended: false,
            story: None,
        }
    }

    /// From now on a shutdown is said to have cut it, though it is not open yet.
    pub(crate) fn begun(mut self) -> Self {
        self.begun = true;
        self
    }

    /// With a clock that was started before.
    pub(crate) fn since(mut self, started: Instant) -> Self {
        self.started = started;
        self
    }

    /// Nothing is said of it: another one takes its place.
    pub(crate) fn discard(mut self) {
        self.ended = true;
    }

    /// Where it goes.
    pub(crate) fn to(&self) -> SocketAddr {
        self.opening.dst
    }

    /// What came of trying to connect.
    pub(crate) fn tell(&mut self, tries: &RetryState, gave_up: Option<GiveUpReason>) {
        let (tries, tried) = tries.summary();
        if tries > 1 || gave_up.is_some() {
            self.story = Some(Box::new(Story { tries, tried: tried.to_owned(), gave_up }));
        }
    }

    /// Replaces the server's identity by the one it proved, and its labels by those it said; has no effect once opened.
    pub(crate) fn learn_destination(&mut self, proven: Option<SpiffeId>, said: Option<End>) {
        if self.traffic.is_none() {
            if let Some(said) = said {
                // Its pod's name is not said: the log has its controller's.
                let pod = said.party.workload.clone();
                self.opening.destination = End { pod, ..said };
            }
            self.opening.destination.party.principal = proven;
        }
    }

    /// Counts and logs the connection as opened; the answer counts its bytes. Only the first call counts.
    pub(crate) fn open(&mut self) -> Traffic {
        if let Some(traffic) = &self.traffic {
            return traffic.clone();
        }
        let labels = self.opening.labels(ResponseFlag::None);
        self.metrics.opened.get_or_create(&labels).inc();
        let (sent, received) =
            (self.metrics.sent.get_or_create(&labels), self.metrics.received.get_or_create(&labels));
        // `sent` flows towards the client. The local workload is the client outbound and the server inbound.
        let (from_local, to_local) = match self.opening.direction {
            Direction::Outbound => (received, sent),
            Direction::Inbound => (sent, received),
        };
        let traffic = Traffic { from_local, to_local, totals: Arc::default() };
        if access_log::says_opened() {
            access_log::opened(&self.line());
        }
        self.traffic.insert(traffic).clone()
    }

    /// Ends it after both directions were copied, well or not.
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

    /// Ends it before or while bytes were copied.
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
        self.ended = true;
        let traffic = self.open();
        let labels = self.opening.labels(error.map(Error::flag).unwrap_or_default());
        self.metrics.closed.get_or_create(&labels).inc();
        if error.is_some() {
            self.metrics.failed.get_or_create(&labels).inc();
        }
        let [from_local, to_local] = &*traffic.totals;
        access_log::closed(
            &self.line(),
            &Ending {
                bytes_sent: from_local.load(Ordering::Relaxed),
                bytes_recv: to_local.load(Ordering::Relaxed),
                duration: self.started.elapsed(),
                error: error.map(ToString::to_string),
                closed_by,
                policy: error.and_then(Error::policy).map(ToString::to_string),
                tries: self.story.as_ref().map(|story| story.tries),
                tried: self.story.as_ref().and_then(|story| shown(&story.tried)),
                gave_up: self.story.as_ref().and_then(|story| story.gave_up).map(GiveUpReason::as_str),
            },
        );
    }

    fn line(&self) -> Line<'_> {
        let Opening { source, destination, mutual_tls, .. } = &*self.opening;
        let identity =
            |end: &'_ End| end.party.principal.as_ref().filter(|_| *mutual_tls).map(ToString::to_string);
        Line {
            src: self.opening.src,
            src_workload: source.pod(),
            src_namespace: shown(source.party.namespace.as_str()),
            src_identity: identity(source),
            src_cluster: shown(source.party.cluster.as_str()),
            dst: self.opening.dst,
            dst_hbone: self.opening.hbone.as_ref(),
            dst_service: self.opening.service.as_ref().map(|service| service.hostname.as_str()),
            dst_workload: destination.pod(),
            dst_namespace: shown(destination.party.namespace.as_str()),
            dst_identity: identity(destination),
            dst_cluster: shown(destination.party.cluster.as_str()),
            direction: self.opening.direction,
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended && (self.begun || self.traffic.is_some()) {
            self.close(Some(&Error::Drained), None);
        }
    }
}

fn shown(text: &str) -> Option<&str> {
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
    fn a_server_that_only_said_who_it_is_is_logged_by_its_workload() {
        let nowhere = SocketAddr::from(([10, 0, 0, 1], 80));
        let opening = Opening {
            reporter: Reporter::Source,
            direction: Direction::Outbound,
            src: nowhere,
            source: End::of(None, None),
            dst: nowhere,
            hbone: None,
            service: None,
            destination: End::of(None, None),
            mutual_tls: true,
        };
        let metrics = Metrics::register(&isthmus_rt::metrics::Registry::default());
        let mut record = Record::new(metrics, opening);
        record.learn_destination(
            None,
            Some(baggage::from_baggage("k8s.deployment.name=web-v1,service.name=web,service.version=v1")),
        );
        assert_eq!(record.line().dst_workload, Some("web-v1"));
    }
}
