//! One ZDS connection as a state machine: hello, snapshot, then one request at a time, acks matched in order (the
//! protocol has no request ids). No I/O: it takes packets and the time and returns what to send. `N` is a network
//! namespace, `A` resolves a request's ack; both are opaque here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use isthmus_model::{PodRef, PodUid};
use isthmus_proto::zds::workload_request::Payload;
use isthmus_proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello, workload_response,
};
use prost::Message as _;

use super::AgentError;

/// Deadline of the hello and of each ack.
pub(crate) const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Overdue acks after which the agent counts as dead.
const MAX_OVERDUE: usize = 6;

/// A request to the agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request<N, A> {
    /// Serve this pod.
    Add { pod: PodRef, netns: N, ack: Option<A> },
    /// Keep serving this pod, whose network namespace was not found.
    Keep { uid: PodUid },
    /// Stop serving this pod.
    Del { uid: PodUid, ack: Option<A> },
    /// The snapshot is complete.
    SnapshotSent,
}

/// What the owner of the connection must do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect<N, A> {
    /// Register the connection and pass the pods to [`Session::snapshot`].
    TakeSnapshot,
    /// Send one packet, with the descriptor of this network namespace if there is one.
    Send { packet: Vec<u8>, netns: Option<N> },
    /// Resolve the ack of a request.
    ResolveAck(A, Result<(), AgentError>),
    /// The agent has refused a pod of the snapshot; it retries by itself.
    SnapshotRefused { what: String, error: String },
    /// The agent has acknowledged its snapshot.
    Synced,
    /// Close the connection.
    Close(SessionError),
}

/// Why a connection is closed: the agent's mistake in every case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionError {
    /// The agent sent no hello in time.
    #[error("no hello within {ACK_TIMEOUT:?}")]
    NoHello,
    /// The agent speaks another version of the protocol.
    #[error("hello with version {0}, expected 1")]
    Version(i32),
    /// A packet is not a message of the protocol.
    #[error("undecodable packet of {len} bytes ({reason})")]
    Garbage { len: usize, reason: String },
    /// An ack without a request.
    #[error("an ack without a request")]
    UnexpectedAck,
    /// The agent has stopped answering.
    #[error("{0} acks are overdue")]
    Dead(usize),
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session<N, A> {
    phase: Phase,
    waiting: VecDeque<Request<N, A>>,
    /// Requests that were sent and not acked, oldest first. Only the last can still be in time.
    unanswered: VecDeque<Unanswered<A>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Hello { until: Instant },
    Snapshot,
    Live,
    Closed,
}

#[derive(Debug)]
struct Unanswered<A> {
    what: String,
    kind: Kind,
    ack: Option<A>,
    /// Deadline of the ack; `None` once it is overdue.
    until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    SnapshotSent,
}

impl<N, A> Session<N, A> {
    /// A connection that was just accepted; the hello is due.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Hello { until: now + ACK_TIMEOUT },
            waiting: VecDeque::new(),
            unanswered: VecDeque::new(),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Hello { until } => Some(until),
            _ => self.unanswered.back().and_then(|last| last.until),
        }
    }

    /// The pods of the snapshot, in answer to [`Effect::TakeSnapshot`].
    pub(crate) fn snapshot(
        &mut self,
        requests: impl IntoIterator<Item = Request<N, A>>,
        now: Instant,
    ) -> Vec<Effect<N, A>> {
        self.waiting.extend(requests);
        self.waiting.push_back(Request::SnapshotSent);
        self.pump(now)
    }

    /// Queues a request behind those that wait already.
    pub(crate) fn enqueue(&mut self, request: Request<N, A>, now: Instant) -> Vec<Effect<N, A>> {
        self.waiting.push_back(request);
        self.pump(now)
    }

    /// A packet from the agent.
    pub(crate) fn handle_packet(&mut self, bytes: &[u8], now: Instant) -> Vec<Effect<N, A>> {
        match self.phase {
            Phase::Closed => Vec::new(),
            Phase::Hello { .. } => match ZdsHello::decode(bytes) {
                Ok(hello) if hello.version == i32::from(Version::V1) => {
                    self.phase = Phase::Snapshot;
                    vec![Effect::TakeSnapshot]
                }
                Ok(hello) => self.close(SessionError::Version(hello.version)),
                Err(error) => self.close(garbage(bytes, &error.to_string())),
            },
            Phase::Snapshot | Phase::Live => match WorkloadResponse::decode(bytes) {
                Ok(WorkloadResponse { payload: Some(workload_response::Payload::Ack(ack)) }) => {
                    self.handle_ack(ack.error, now)
                }
                Ok(_) => self.close(garbage(bytes, "not an ack")),
                Err(error) => self.close(garbage(bytes, &error.to_string())),
            },
        }
    }

    /// The deadline has passed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<Effect<N, A>> {
        if let Phase::Hello { until } = self.phase {
            return if until <= now { self.close(SessionError::NoHello) } else { Vec::new() };
        }
        let Some(last) = self.unanswered.back_mut().filter(|last| last.until.is_some_and(|at| at <= now))
        else {
            return Vec::new();
        };
        last.until = None;
        let mut effects: Vec<_> = last
            .ack
            .take()
            .map(|ack| Effect::ResolveAck(ack, Err(AgentError::TimedOut)))
            .into_iter()
            .collect();
        if self.unanswered.len() >= MAX_OVERDUE {
            effects.extend(self.close(SessionError::Dead(self.unanswered.len())));
        } else {
            effects.extend(self.pump(now));
        }
        effects
    }

    /// The connection is gone: returns the acks that are still due.
    pub(crate) fn abandon(&mut self) -> Vec<A> {
        self.phase = Phase::Closed;
        let sent = self.unanswered.drain(..).filter_map(|unanswered| unanswered.ack);
        let waiting = self.waiting.drain(..).filter_map(|request| match request {
            Request::Add { ack, .. } | Request::Del { ack, .. } => ack,
            Request::Keep { .. } | Request::SnapshotSent => None,
        });
        sent.chain(waiting).collect()
    }

    fn handle_ack(&mut self, error: String, now: Instant) -> Vec<Effect<N, A>> {
        let Some(Unanswered { what, kind, ack, .. }) = self.unanswered.pop_front() else {
            return self.close(SessionError::UnexpectedAck);
        };
        let mut effects = Vec::new();
        match (ack, kind) {
            (Some(ack), _) => {
                let result = if error.is_empty() { Ok(()) } else { Err(AgentError::Refused(error)) };
                effects.push(Effect::ResolveAck(ack, result));
            }
            (None, Kind::SnapshotSent) if error.is_empty() => {
                self.phase = Phase::Live;
                effects.push(Effect::Synced);
            }
            (None, _) if !error.is_empty() => effects.push(Effect::SnapshotRefused { what, error }),
            (None, _) => {}
        }
        effects.extend(self.pump(now));
        effects
    }

    /// Sends the next request unless an ack can still come in time. After an overdue ack the next request is sent
    /// anyway: the late ack is matched to its own request, because acks come in order.
    fn pump(&mut self, now: Instant) -> Vec<Effect<N, A>> {
        let busy = matches!(self.phase, Phase::Hello { .. } | Phase::Closed)
            || self.unanswered.back().is_some_and(|last| last.until.is_some());
        if busy {
            return Vec::new();
        }
        let Some(request) = self.waiting.pop_front() else { return Vec::new() };
        let (payload, what, netns, kind, ack) = match request {
            Request::Add { pod, netns, ack } => {
                let what = format!("add {} ({pod})", pod.uid);
                let add = AddWorkload { uid: pod.uid.to_string(), workload_info: Some(workload_info(&pod)) };
                (Payload::Add(add), what, Some(netns), Kind::Pod, ack)
            }
            Request::Keep { uid } => {
                let keep = KeepWorkload { uid: uid.to_string() };
                (Payload::Keep(keep), format!("keep {uid}"), None, Kind::Pod, None)
            }
            Request::Del { uid, ack } => {
                let del = DelWorkload { uid: uid.to_string() };
                (Payload::Del(del), format!("del {uid}"), None, Kind::Pod, ack)
            }
            Request::SnapshotSent => {
                let sent = Payload::SnapshotSent(SnapshotSent {});
                (sent, "end of snapshot".to_owned(), None, Kind::SnapshotSent, None)
            }
        };
        self.unanswered.push_back(Unanswered { what, kind, ack, until: Some(now + ACK_TIMEOUT) });
        vec![Effect::Send { packet: WorkloadRequest { payload: Some(payload) }.encode_to_vec(), netns }]
    }

    fn close(&mut self, error: SessionError) -> Vec<Effect<N, A>> {
        self.phase = Phase::Closed;
        vec![Effect::Close(error)]
    }
}

/// How the protocol describes a pod.
fn workload_info(pod: &PodRef) -> WorkloadInfo {
    WorkloadInfo {
        name: pod.name.to_string(),
        namespace: pod.namespace.to_string(),
        service_account: pod.service_account.to_string(),
    }
}

fn garbage(bytes: &[u8], reason: &str) -> SessionError {
    SessionError::Garbage { len: bytes.len(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
