//! Handles one query: answers it from the state, at once or when the pod's workload becomes known, or forwards it. Records
//! metrics and log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{PodRef, Workload};
use isthmus_state::dns::{self, Answer, Domains, Family};
use isthmus_state::{Snapshot, State};
use isthmus_sys::conntrack::Conntrack;
use isthmus_sys::socket::Sockets;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Config;
use super::in_flight::InFlight;
use crate::metrics::{Labels, Metrics};
use crate::query::{self, Kind, Message, NameQuery};
use crate::relay::Relay;
use crate::response::{self, Failure, Transport, failure};

/// How long a query waits for the pod's workload to arrive from the control plane.
const WORKLOAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Log scope.
const LOG: &str = "dns";

/// Handler of one pod's queries.
#[derive(Debug)]
pub(super) struct Handler {
    state: State,
    pod: PodRef,
    domains: Domains,
    pub(super) relay: Relay,
    metrics: Arc<Metrics>,
    /// Finds the original destination of a datagram; `None` if conntrack is unavailable.
    conntrack: Option<Conntrack>,
    /// Datagrams in flight.
    pub(super) in_flight: Arc<InFlight>,
}

/// What to do with a query.
pub(super) enum Outcome {
    /// Send no response.
    Ignore,
    /// Send this response.
    Answer(Vec<u8>),
    /// Wait for a server or the pod's workload: [`Handler::finish`].
    Wait,
}

/// Result of looking a name up for a known client.
enum Resolution {
    Answer(Vec<u8>),
    Forward,
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
            tracing::debug!(pod = %pod.name, %error, "conntrack is unavailable, UDP queries are forwarded to the agent's own DNS servers instead of the addressed one");
        }
        let Config {
            cluster_domain, preferred_namespace, upstream, timeout, max_waiting, descriptors, ..
        } = config;
        let relay = Relay::new(sockets, upstream, timeout);
        Self {
            state,
            pod,
            domains: Domains { cluster: cluster_domain, preferred_namespace },
            relay: match descriptors {
                Some(descriptors) => relay.with_descriptors(descriptors),
                None => relay,
            },
            metrics,
            conntrack: conntrack.ok(),
            in_flight: InFlight::new(max_waiting),
        }
    }

    /// Counts a query, and answers it if that needs no waiting.
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
            (Message::Other, _) | (Message::Name(_), None) => Outcome::Wait,
            (Message::Name(query), Some(client)) => {
                match self.resolve(&snapshot, client, &query, message, transport) {
                    Resolution::Answer(answer) => Outcome::Answer(answer),
                    Resolution::Forward => Outcome::Wait,
                }
            }
        }
    }

    /// The server to which the client `from` addressed a datagram that arrived at our socket `at`; `None` when it was
    /// addressed to us, or is unknown.
    pub(super) fn original_server(&self, from: SocketAddr, at: SocketAddr) -> Option<SocketAddr> {
        match self.conntrack.as_ref()?.original_udp(from, at) {
            Ok(found) => found.filter(|server| *server != at),
            Err(error) => {
                tracing::debug!(pod = %self.pod.name, %error, "cannot look up the original DNS server in conntrack, using the agent's own");
                None
            }
        }
    }

    /// Answers a query that had to wait. `original` is the server that the client addressed, if it is known.
    pub(super) async fn finish(
        &self,
        message: &[u8],
        transport: Transport,
        original: Option<SocketAddr>,
    ) -> Option<Vec<u8>> {
        let mut client = self.state.load().local_workload(&self.pod).cloned();
        let Message::Name(query) = query::read(message) else {
            return self.relay(message, transport, client.as_deref(), original).await;
        };
        if client.is_none() && query.kind != Kind::Other {
            client = self.state.wait_for_pod(&self.pod, WORKLOAD_TIMEOUT).await;
            if client.is_none() {
                self.log(message, "unknown client workload", 0);
                return failure(message, Failure::Server);
            }
        }
        if let Some(known) = &client
            && let Resolution::Answer(answer) =
                self.resolve(&self.state.load(), known, &query, message, transport)
        {
            return Some(answer);
        }
        let answer = self.relay(message, transport, client.as_deref(), original).await?;
        Some(self.without_denial(answer, client.as_deref(), &query, message))
    }

    /// The name that a server denies may be the mesh's: it exists, and has no records of this type. A resolver that
    /// believed the server would ask for its addresses no more (RFC 8020).
    fn without_denial(
        &self,
        answer: Vec<u8>,
        client: Option<&Workload>,
        query: &NameQuery<'_>,
        message: &[u8],
    ) -> Vec<u8> {
        let is_ours = |client: &Workload| {
            let found = dns::lookup(&self.state.load(), client, &query.name, Family::V4, &self.domains);
            found != Answer::NotOurs
        };
        if query::denies_name(&answer) && client.is_some_and(is_ours) {
            return response::no_data(message).unwrap_or(answer);
        }
        answer
    }

    /// Hands a TCP connection over to the server, from a message on that may have several responses.
    pub(super) async fn pass(&self, stream: &mut TcpStream, message: &[u8], original: Option<SocketAddr>) {
        let snapshot = self.state.load();
        let labels =
            Labels::new(message, Transport::Tcp, snapshot.local_workload(&self.pod).map(AsRef::as_ref));
        drop(snapshot);
        self.metrics.upstream_requests.get_or_create(&labels).inc();
        self.log(message, "forwarded", 0);
        if let Err(error) = self.relay.pass(stream, message, original).await {
            self.metrics.upstream_failures.get_or_create(&labels).inc();
            self.log(message, &format!("forwarding failed ({error})"), 0);
        }
    }

    fn resolve(
        &self,
        snapshot: &Snapshot,
        client: &Workload,
        query: &NameQuery<'_>,
        message: &[u8],
        transport: Transport,
    ) -> Resolution {
        let look_up = |family| dns::lookup(snapshot, client, &query.name, family, &self.domains);
        let (canonical, mut addresses) = match query.kind {
            Kind::Addresses(family) => match look_up(family) {
                Answer::Addresses(found) => (found.canonical, found.addresses),
                Answer::Empty => (None, Vec::new()),
                Answer::NotOurs => return Resolution::Forward,
            },
            // Another server's could lead around the mesh.
            Kind::Binding if look_up(Family::V4) != Answer::NotOurs => (None, Vec::new()),
            Kind::Binding | Kind::Other => return Resolution::Forward,
        };
        fastrand::shuffle(&mut addresses);
        let result = if addresses.is_empty() { "no records" } else { "success" };
        self.log(message, result, addresses.len());
        match response::addresses(query, canonical.as_deref(), &addresses, transport) {
            Ok(answer) => Resolution::Answer(answer),
            // A parsed name can be encoded; only a malformed cluster domain can fail here.
            Err(error) => {
                tracing::warn!(name = query.name, %error, "cannot encode DNS response, forwarding the query; check CLUSTER_DOMAIN");
                Resolution::Forward
            }
        }
    }

    async fn relay(
        &self,
        message: &[u8],
        transport: Transport,
        client: Option<&Workload>,
        original: Option<SocketAddr>,
    ) -> Option<Vec<u8>> {
        let labels = Labels::new(message, transport, client);
        self.metrics.upstream_requests.get_or_create(&labels).inc();
        let start = Instant::now();
        match self.relay.ask(message, transport, original).await {
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

    /// Counts a datagram that gave way to a newer one because too many are in flight.
    pub(super) fn dropped(&self, message: &[u8]) {
        let snapshot = self.state.load();
        let client = snapshot.local_workload(&self.pod).map(AsRef::as_ref);
        let labels = Labels::new(message, Transport::Udp, client);
        self.metrics.upstream_failures.get_or_create(&labels).inc();
        self.log(message, "dropped (too many queries wait)", 0);
    }

    fn log(&self, message: &[u8], result: &str, endpoints: usize) {
        if !tracing::enabled!(target: LOG, tracing::Level::DEBUG) {
            return;
        }
        let domain = match query::read(message) {
            Message::Name(query) => query.name,
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
