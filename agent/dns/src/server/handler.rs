//! What becomes of one query: answered from the state at once, or after waiting for the pod's workload to be known, or
//! relayed. Counts and logs it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{PodRef, Workload};
use isthmus_state::dns::{self, Answer, Domains};
use isthmus_state::{Snapshot, State};
use isthmus_sys::conntrack::Conntrack;
use isthmus_sys::socket::Sockets;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Config;
use crate::answer::{self, Failure, Transport, failure};
use crate::metrics::{Labels, Metrics};
use crate::query::{self, Addresses, Message};
use crate::relay::Relay;

/// How long a name may wait for the pod's workload to be known.
const POD_PATIENCE: Duration = Duration::from_secs(5);
/// Scope of the log.
const LOG: &str = "dns";

/// Everything that one pod's queries need.
#[derive(Debug)]
pub(super) struct Handler {
    state: State,
    pod: PodRef,
    domains: Domains,
    relay: Relay,
    metrics: Arc<Metrics>,
    /// Knows whom a datagram was for; `None` where it cannot be asked.
    conntrack: Option<Conntrack>,
    /// Queries that may wait for somebody at a time.
    pub(super) waiting: Arc<Semaphore>,
}

/// What to do with a query now.
pub(super) enum Outcome {
    /// It deserves no answer.
    Ignore,
    /// Here is one.
    Answer(Vec<u8>),
    /// Somebody has to be waited for: [`Handler::finish`].
    Wait,
}

/// What is done with a name whose asker is known.
enum Verdict {
    Answer(Vec<u8>),
    Relay,
}

// === impl Handler ===

impl Handler {
    pub(super) fn new(
        state: State,
        pod: PodRef,
        config: Config,
        sockets: &Sockets,
        metrics: Arc<Metrics>,
    ) -> Self {
        let conntrack = sockets.conntrack();
        if let Err(error) = &conntrack {
            tracing::debug!(pod = %pod.name, %error, "the agent's own resolver is asked whomever an application asks");
        }
        let Config { cluster_domain, preferred_namespace, upstream, patience, max_waiting, .. } = config;
        Self {
            state,
            pod,
            domains: Domains { cluster: cluster_domain, preferred_namespace },
            relay: Relay::new(sockets, upstream, patience),
            metrics,
            conntrack: conntrack.ok(),
            waiting: Arc::new(Semaphore::new(max_waiting)),
        }
    }

    /// Counts a query and answers it when that needs nobody else.
    pub(super) fn decide(&self, message: &[u8], transport: Transport) -> Outcome {
        let snapshot = self.state.load();
        let client = snapshot.local_workload(&self.pod);
        self.metrics
            .requests
            .get_or_create(&Labels::new(message, transport, client.map(AsRef::as_ref)))
            .inc();
        match (query::read(message), client) {
            (Message::Runt, _) => Outcome::Ignore,
            (Message::Response, _) => {
                failure(message, Failure::Format).map_or(Outcome::Ignore, Outcome::Answer)
            }
            (Message::Other, _) | (Message::Addresses(_), None) => Outcome::Wait,
            (Message::Addresses(query), Some(client)) => {
                match self.verdict(&snapshot, client, &query, message, transport) {
                    Verdict::Answer(answer) => Outcome::Answer(answer),
                    Verdict::Relay => Outcome::Wait,
                }
            }
        }
    }

    /// The server that a datagram was for which came `from` there to our socket `at`; `None` when it was for us or
    /// nobody knows.
    pub(super) fn asked(&self, from: SocketAddr, at: SocketAddr) -> Option<SocketAddr> {
        match self.conntrack.as_ref()?.original_udp(from, at) {
            Ok(found) => found.filter(|server| *server != at),
            Err(error) => {
                tracing::debug!(pod = %self.pod.name, %error, "cannot tell which DNS server was asked");
                None
            }
        }
    }

    /// Answers a query that had to wait. `asked` is the server that the client meant, where that is known.
    pub(super) async fn finish(
        &self,
        message: &[u8],
        transport: Transport,
        asked: Option<SocketAddr>,
    ) -> Option<Vec<u8>> {
        let mut client = self.state.load().local_workload(&self.pod).cloned();
        if let Message::Addresses(query) = query::read(message) {
            if client.is_none() {
                client = self.state.wait_for_pod(&self.pod, POD_PATIENCE).await;
            }
            let Some(known) = &client else {
                self.log(message, "unknown client workload", 0);
                return failure(message, Failure::Server);
            };
            if let Verdict::Answer(answer) =
                self.verdict(&self.state.load(), known, &query, message, transport)
            {
                return Some(answer);
            }
        }
        self.relay(message, transport, client.as_deref(), asked).await
    }

    /// Gives a TCP connection to the server for good, from a message on to which there may be more than one answer.
    pub(super) async fn pass(&self, stream: &mut TcpStream, message: &[u8], asked: Option<SocketAddr>) {
        let snapshot = self.state.load();
        let labels =
            Labels::new(message, Transport::Tcp, snapshot.local_workload(&self.pod).map(AsRef::as_ref));
        drop(snapshot);
        self.metrics.upstream_requests.get_or_create(&labels).inc();
        self.log(message, "forwarded", 0);
        if let Err(error) = self.relay.pass(stream, message, asked).await {
            self.metrics.upstream_failures.get_or_create(&labels).inc();
            self.log(message, &format!("forwarding failed ({error})"), 0);
        }
    }

    fn verdict(
        &self,
        snapshot: &Snapshot,
        client: &Workload,
        query: &Addresses<'_>,
        message: &[u8],
        transport: Transport,
    ) -> Verdict {
        let (canonical, addresses) =
            match dns::lookup(snapshot, client, &query.name, query.family, &self.domains) {
                Answer::Addresses(found) => (found.canonical, found.addresses),
                Answer::Empty => (None, Vec::new()),
                Answer::NotOurs => return Verdict::Relay,
            };
        let mut addresses = addresses;
        fastrand::shuffle(&mut addresses);
        let result = if addresses.is_empty() { "no records" } else { "success" };
        self.log(message, result, addresses.len());
        match answer::addresses(query, canonical.as_deref(), &addresses, transport) {
            Ok(answer) => Verdict::Answer(answer),
            // A name that was read can be written, unless it is the configured domain that cannot.
            Err(error) => {
                tracing::warn!(name = query.name, %error, "cannot make a DNS answer");
                Verdict::Relay
            }
        }
    }

    async fn relay(
        &self,
        message: &[u8],
        transport: Transport,
        client: Option<&Workload>,
        asked: Option<SocketAddr>,
    ) -> Option<Vec<u8>> {
        let labels = Labels::new(message, transport, client);
        self.metrics.upstream_requests.get_or_create(&labels).inc();
        let start = Instant::now();
        match self.relay.ask(message, transport, asked).await {
            Ok(answer) => {
                self.metrics.relayed(&labels, start.elapsed());
                self.log(message, "forwarded", 0);
                Some(answer)
            }
            Err(error) => {
                self.metrics.upstream_failures.get_or_create(&labels).inc();
                self.log(message, &format!("forwarding failed ({error})"), 0);
                failure(message, Failure::Server)
            }
        }
    }

    /// Counts a query that is refused because too many wait already.
    pub(super) fn overloaded(&self, message: &[u8], transport: Transport) {
        let snapshot = self.state.load();
        let client = snapshot.local_workload(&self.pod).map(AsRef::as_ref);
        let labels = Labels::new(message, transport, client);
        self.metrics.upstream_failures.get_or_create(&labels).inc();
        self.log(message, "forwarding failed (too many queries wait)", 0);
    }

    fn log(&self, message: &[u8], result: &str, endpoints: usize) {
        if !tracing::enabled!(target: LOG, tracing::Level::DEBUG) {
            return;
        }
        let domain = match query::read(message) {
            Message::Addresses(query) => query.name,
            _ => String::new(),
        };
        tracing::event!(
            target: LOG,
            tracing::Level::DEBUG,
            src.workload = self.pod.name.as_str(),
            src.namespace = self.pod.namespace.as_str(),
            query = query::type_label(message),
            domain,
            result,
            endpoints,
            "dns query"
        );
    }
}
