//! One ZDS connection as a state machine: hello, snapshot, then one request at a time, answers matched in order. Sans-IO:
//! it takes packets and the time, and says what to send. `N` stands for a namespace, `T` for whoever waits for an answer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use isthmus_model::name::PodUid;
use isthmus_proto::zds::workload_request::Payload;
use isthmus_proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadRequest, WorkloadResponse,
    ZdsHello, workload_response,
};
use prost::Message as _;

use super::{AgentError, AgentPod};

/// Longest wait for the hello and for each answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Answers that may be overdue before the peer counts as dead.
const MAX_OVERDUE: usize = 6;

/// Something to tell the data plane.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Order<N, T> {
    /// Serve this pod.
    Add { pod: AgentPod, netns: N, ticket: Option<T> },
    /// Go on serving this pod, whose namespace is not at hand.
    Keep { uid: PodUid },
    /// Stop serving this pod.
    Del { uid: PodUid, ticket: Option<T> },
    /// That was all.
    SnapshotSent,
}

/// What the connection's owner must do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect<N, T> {
    /// Register the connection and hand in the snapshot.
    TakeSnapshot,
    /// Send one packet, with this namespace's descriptor if there is one.
    Send { packet: Vec<u8>, netns: Option<N> },
    /// Somebody's answer is here.
    Settle(T, Result<(), AgentError>),
    /// A pod of the snapshot is not served; the agent tries again by itself.
    SnapshotRefused { what: String, error: String },
    /// The snapshot is known to the agent.
    Synced,
    /// Close the connection.
    Close(Closed),
}

/// Why a connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Closed {
    /// No hello in time.
    #[error("no hello within {PATIENCE:?}")]
    NoHello,
    /// The hello is for another protocol.
    #[error("hello with version {0}, expected 1")]
    Version(i32),
    /// A packet that is no message of the protocol.
    #[error("undecodable packet of {len} bytes ({reason})")]
    Garbage { len: usize, reason: String },
    /// An answer without a request.
    #[error("an answer that nothing was asked for")]
    Unasked,
    /// It does not answer any more.
    #[error("{0} answers are overdue")]
    Dead(usize),
}

/// The state of one connection.
#[derive(Debug)]
pub(crate) struct Session<N, T> {
    phase: Phase,
    waiting: VecDeque<Order<N, T>>,
    /// Sent and not answered, oldest first. Only the last can still be in time.
    unanswered: VecDeque<Unanswered<T>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Hello { until: Instant },
    Snapshot,
    Live,
    Closed,
}

#[derive(Debug)]
struct Unanswered<T> {
    what: String,
    kind: Kind,
    ticket: Option<T>,
    /// `None` once it is overdue.
    until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pod,
    SnapshotSent,
}

impl<N, T> Session<N, T> {
    /// A connection that was just accepted.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Hello { until: now + PATIENCE },
            waiting: VecDeque::new(),
            unanswered: VecDeque::new(),
        }
    }

    /// When [`tick`](Self::tick) is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Hello { until } => Some(until),
            _ => self.unanswered.back().and_then(|last| last.until),
        }
    }

    /// The snapshot asked for with [`Effect::TakeSnapshot`].
    pub(crate) fn snapshot(
        &mut self,
        orders: impl IntoIterator<Item = Order<N, T>>,
        now: Instant,
    ) -> Vec<Effect<N, T>> {
        self.waiting.extend(orders);
        self.waiting.push_back(Order::SnapshotSent);
        self.pump(now)
    }

    /// Something to tell, after what is already waiting.
    pub(crate) fn order(&mut self, order: Order<N, T>, now: Instant) -> Vec<Effect<N, T>> {
        self.waiting.push_back(order);
        self.pump(now)
    }

    /// A packet from the data plane.
    pub(crate) fn packet(&mut self, bytes: &[u8], now: Instant) -> Vec<Effect<N, T>> {
        match self.phase {
            Phase::Closed => Vec::new(),
            Phase::Hello { .. } => match ZdsHello::decode(bytes) {
                Ok(hello) if hello.version == i32::from(Version::V1) => {
                    self.phase = Phase::Snapshot;
                    vec![Effect::TakeSnapshot]
                }
                Ok(hello) => self.close(Closed::Version(hello.version)),
                Err(error) => self.close(garbage(bytes, &error.to_string())),
            },
            Phase::Snapshot | Phase::Live => match WorkloadResponse::decode(bytes) {
                Ok(WorkloadResponse { payload: Some(workload_response::Payload::Ack(ack)) }) => {
                    self.answer(ack.error, now)
                }
                Ok(_) => self.close(garbage(bytes, "no ack in it")),
                Err(error) => self.close(garbage(bytes, &error.to_string())),
            },
        }
    }

    /// The deadline has come.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Effect<N, T>> {
        if let Phase::Hello { until } = self.phase {
            return if until <= now { self.close(Closed::NoHello) } else { Vec::new() };
        }
        let Some(last) = self.unanswered.back_mut().filter(|last| last.until.is_some_and(|at| at <= now))
        else {
            return Vec::new();
        };
        last.until = None;
        let mut effects: Vec<_> = last
            .ticket
            .take()
            .map(|ticket| Effect::Settle(ticket, Err(AgentError::Late)))
            .into_iter()
            .collect();
        if self.unanswered.len() >= MAX_OVERDUE {
            effects.extend(self.close(Closed::Dead(self.unanswered.len())));
        } else {
            effects.extend(self.pump(now));
        }
        effects
    }

    /// Everybody who still waits; the connection is gone.
    pub(crate) fn abandon(&mut self) -> Vec<T> {
        self.phase = Phase::Closed;
        let sent = self.unanswered.drain(..).filter_map(|unanswered| unanswered.ticket);
        let waiting = self.waiting.drain(..).filter_map(|order| match order {
            Order::Add { ticket, .. } | Order::Del { ticket, .. } => ticket,
            Order::Keep { .. } | Order::SnapshotSent => None,
        });
        sent.chain(waiting).collect()
    }

    fn answer(&mut self, error: String, now: Instant) -> Vec<Effect<N, T>> {
        let Some(Unanswered { what, kind, ticket, .. }) = self.unanswered.pop_front() else {
            return self.close(Closed::Unasked);
        };
        let mut effects = Vec::new();
        match (ticket, kind) {
            (Some(ticket), _) => {
                let result = if error.is_empty() { Ok(()) } else { Err(AgentError::Refused(error)) };
                effects.push(Effect::Settle(ticket, result));
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

    /// Sends the next order unless an answer can still come in time.
    fn pump(&mut self, now: Instant) -> Vec<Effect<N, T>> {
        let busy = matches!(self.phase, Phase::Hello { .. } | Phase::Closed)
            || self.unanswered.back().is_some_and(|last| last.until.is_some());
        if busy {
            return Vec::new();
        }
        let Some(order) = self.waiting.pop_front() else { return Vec::new() };
        let (payload, what, netns, kind, ticket) = match order {
            Order::Add { pod, netns, ticket } => {
                let what = format!("add {} ({}/{})", pod.uid, pod.namespace, pod.name);
                let add = AddWorkload { uid: pod.uid.to_string(), workload_info: Some(pod.info()) };
                (Payload::Add(add), what, Some(netns), Kind::Pod, ticket)
            }
            Order::Keep { uid } => {
                let keep = KeepWorkload { uid: uid.to_string() };
                (Payload::Keep(keep), format!("keep {uid}"), None, Kind::Pod, None)
            }
            Order::Del { uid, ticket } => {
                let del = DelWorkload { uid: uid.to_string() };
                (Payload::Del(del), format!("del {uid}"), None, Kind::Pod, ticket)
            }
            Order::SnapshotSent => {
                let sent = Payload::SnapshotSent(SnapshotSent {});
                (sent, "end of snapshot".to_owned(), None, Kind::SnapshotSent, None)
            }
        };
        self.unanswered.push_back(Unanswered { what, kind, ticket, until: Some(now + PATIENCE) });
        vec![Effect::Send { packet: WorkloadRequest { payload: Some(payload) }.encode_to_vec(), netns }]
    }

    fn close(&mut self, why: Closed) -> Vec<Effect<N, T>> {
        self.phase = Phase::Closed;
        vec![Effect::Close(why)]
    }
}

fn garbage(bytes: &[u8], reason: &str) -> Closed {
    Closed::Garbage { len: bytes.len(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
