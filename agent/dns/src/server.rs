//! The DNS server of one pod: receives queries, has them handled, and sends the responses. It owns the pod's DNS sockets
//! and tasks, and bounds how many of either a pod may have.

mod connections;
mod handler;
mod in_flight;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{AgentPorts, Namespace, PodRef};
use isthmus_rt::backoff::Backoff;
use isthmus_rt::descriptors::{DescriptorPermit, DescriptorShare};
use isthmus_rt::drain::Watch;
use isthmus_rt::fair::Share;
use isthmus_rt::task::Tasks;
use isthmus_state::State;
use isthmus_sys::socket::{self, Sockets};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::listeners::{BindError, Listeners};
use crate::metrics::Metrics;
use crate::response::{Failure, Transport, failure};
use crate::{query, relay};
use connections::{Connections, OpenConnection};
use handler::{Handler, Outcome};

/// Size of the largest datagram.
const MAX_DATAGRAM: usize = u16::MAX as usize;
/// Queries and connections that are still accepted from a socket when it closes, at most.
const BACKLOG: usize = 1024;
/// The discard port, from which no DNS query is sent.
const DISCARD: u16 = 9;
/// Timeout of a TCP client that sends no query, and of one that does not read a response.
const TCP_IDLE: Duration = Duration::from_secs(5);

/// Settings of the DNS proxy.
#[derive(Clone, Debug)]
pub struct Config {
    /// Port on the pod's loopback addresses.
    pub port: u16,
    /// DNS domain of the cluster.
    pub cluster_domain: String,
    /// Namespace whose service is preferred when several namespaces define the same hostname.
    pub preferred_namespace: Option<Namespace>,
    /// DNS servers for names outside the mesh, in order.
    pub upstream: Vec<SocketAddr>,
    /// Timeout of one server.
    pub timeout: Duration,
    /// Forwarded datagrams of one pod in flight; a further one takes the place of the oldest to the server with the most.
    pub max_waiting: usize,
    /// Open TCP connections of one pod; for a further one the longest idle is closed.
    pub max_connections: usize,
    /// The pod's share of descriptors, which its connections and forwarded queries use.
    pub descriptors: Option<DescriptorShare>,
}

/// The DNS proxy of one pod. Dropping it stops everything at once.
#[derive(Debug)]
pub struct DnsProxy {
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
    /// One task per listener.
    loops: Tasks,
    /// Queries and connections. Owned here, so that they survive their listener in a drain.
    queries: Tasks,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            port: AgentPorts::WELL_KNOWN.dns,
            cluster_domain: "cluster.local".to_owned(),
            preferred_namespace: None,
            upstream: Vec::new(),
            timeout: Duration::from_secs(4),
            max_waiting: 256,
            max_connections: 64,
            descriptors: None,
        }
    }
}

// === impl DnsProxy ===

impl DnsProxy {
    /// Listens in the pod's namespace and serves until drained or dropped, on the pod's share of CPU time. `sockets` makes
    /// the sockets towards the servers, too. Must be called inside a runtime.
    ///
    /// # Errors
    /// When neither loopback address can be bound.
    pub fn start(
        state: State,
        pod: PodRef,
        config: Config,
        sockets: &Sockets,
        drain: &Watch,
        metrics: Arc<Metrics>,
        share: Arc<Share>,
    ) -> Result<Self, BindError> {
        let listeners = Listeners::bind(sockets, config.port)?;
        let name = format!("dns {}/{}", pod.namespace, pod.name);
        let tasks = || Tasks::new(name.as_str()).on(Arc::clone(&share));
        let (loops, queries) = (tasks(), tasks());
        let (udp, tcp) = (listeners.udp_addresses(), listeners.tcp_addresses());
        let connections = Connections::new(config.max_connections);
        let handler = Arc::new(Handler::new(state, pod, config, sockets, metrics));
        for socket in listeners.udp {
            let decide = |handler: &Handler, message: &[u8]| handler.decide(message, Transport::Udp);
            let serve =
                udp_loop(Arc::new(socket), Arc::clone(&handler), decide, drain.clone(), queries.clone());
            loops.spawn("dns udp", serve);
        }
        for listener in listeners.tcp {
            let connections = Arc::clone(&connections);
            let serve = tcp_loop(listener, Arc::clone(&handler), drain.clone(), queries.clone(), connections);
            loops.spawn("dns tcp", serve);
        }
        Ok(Self { udp, tcp, loops, queries })
    }

    /// UDP addresses.
    #[must_use]
    pub fn udp_addresses(&self) -> &[SocketAddr] {
        &self.udp
    }

    /// TCP addresses.
    #[must_use]
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// Whether it still accepts queries.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.loops.is_empty()
    }

    /// Number of UDP queries in flight and open TCP connections.
    #[must_use]
    pub fn active(&self) -> usize {
        self.queries.len()
    }
}

/// Receives datagrams until the drain begins. Most are answered inline, so a panic over one of them is caught: it must not
/// end the listener.
async fn udp_loop(
    socket: Arc<UdpSocket>,
    handler: Arc<Handler>,
    decide: impl Fn(&Handler, &[u8]) -> Outcome,
    drain: Watch,
    tasks: Tasks,
) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    let mut backoff = retry_backoff();
    loop {
        let received = tokio::select! {
            biased;
            () = drain.graceful() => break,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "cannot receive DNS queries, retrying");
                tokio::time::sleep(backoff.next_delay()).await;
                continue;
            }
        };
        backoff.reset();
        datagram(&buffer[..length], client, &socket, &handler, &decide, &drain, &tasks).await;
    }
    // Datagrams in this socket's buffer would be lost with it.
    let Ok(rest) = retired(&socket) else { return };
    for _ in 0..BACKLOG {
        let Ok((length, client)) = rest.recv_from(&mut buffer) else { return };
        datagram(&buffer[..length], client, &socket, &handler, &decide, &drain, &tasks).await;
    }
}

/// A second handle of a socket that receives no new datagrams: it is connected to a peer that sends none, so that the
/// kernel delivers new queries to the agent that shares the port, while responses can still be sent from here.
fn retired(socket: &UdpSocket) -> std::io::Result<std::net::UdpSocket> {
    let rest = std::net::UdpSocket::from(socket.as_fd().try_clone_to_owned()?);
    rest.connect((rest.local_addr()?.ip(), DISCARD))?;
    Ok(rest)
}

async fn datagram(
    message: &[u8],
    client: SocketAddr,
    socket: &Arc<UdpSocket>,
    handler: &Arc<Handler>,
    decide: &impl Fn(&Handler, &[u8]) -> Outcome,
    drain: &Watch,
    tasks: &Tasks,
) {
    let decided = catch_unwind(AssertUnwindSafe(|| decide(handler, message)));
    let outcome = decided.unwrap_or_else(|_| {
        tracing::error!(%client, "panic while handling a DNS query, answered SERVFAIL");
        failure(message, Failure::Server).map_or(Outcome::Ignore, Outcome::Answer)
    });
    match outcome {
        Outcome::Ignore => {}
        Outcome::Answer(answer) => send(socket, &answer, client).await,
        Outcome::Wait => wait_for_answer(message.to_vec(), client, socket, handler, drain, tasks),
    }
}

/// Answers a query that has to wait for a server or the pod's workload, in its own task.
fn wait_for_answer(
    message: Vec<u8>,
    client: SocketAddr,
    socket: &Arc<UdpSocket>,
    handler: &Arc<Handler>,
    drain: &Watch,
    tasks: &Tasks,
) {
    // Now: conntrack forgets the entry, and the client may reuse its port.
    let asked = socket.local_addr().ok().and_then(|at| handler.original_server(client, at));
    let mut place = handler.in_flight.admit(asked);
    let (socket, handler, drain) = (Arc::clone(socket), Arc::clone(handler), drain.clone());
    tasks.spawn("dns query", async move {
        tokio::select! {
            () = drain.forced() => {}
            () = place.gives_way() => handler.dropped(&message),
            answer = handler.finish(&message, Transport::Udp, asked) => if let Some(answer) = answer {
                send(&socket, &answer, client).await;
            },
        }
    });
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "cannot send DNS response");
    }
}

async fn tcp_loop(
    listener: TcpListener,
    handler: Arc<Handler>,
    drain: Watch,
    tasks: Tasks,
    connections: Arc<Connections>,
) {
    let mut backoff = retry_backoff();
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.graceful() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept DNS connections, retrying");
                tokio::time::sleep(backoff.next_delay()).await;
                continue;
            }
        };
        backoff.reset();
        let Ok(descriptor) = handler.relay.descriptor() else {
            tracing::debug!("DNS connection reset, the pod holds its share of file descriptors");
            socket::reset_on_close(&stream);
            continue;
        };
        // In a drain it is served in any case: for its client it is established.
        let open = tokio::select! {
            biased;
            open = connections.admit() => Some(open),
            () = drain.graceful() => None,
        };
        serve_connection(stream, (open, descriptor), &handler, &drain, &tasks);
    }
    // Connections in the backlog are established for their clients: closing the listener would reset them.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..BACKLOG {
        let Ok((stream, _)) = listener.accept() else { return };
        let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) else {
            continue;
        };
        serve_connection(stream, (None, None), &handler, &drain, &tasks);
    }
}

fn serve_connection(
    stream: TcpStream,
    (open, descriptor): (Option<OpenConnection>, Option<DescriptorPermit>),
    handler: &Arc<Handler>,
    drain: &Watch,
    tasks: &Tasks,
) {
    let (handler, drain) = (Arc::clone(handler), drain.clone());
    tasks.spawn("dns connection", async move {
        let _descriptor = descriptor;
        tokio::select! {
            () = drain.forced() => {}
            served = connection(stream, open, &handler, &drain) => if let Err(error) = served {
                tracing::debug!(%error, "DNS connection failed");
            },
        }
    });
}

/// Serves queries one after the other until the client closes, is idle for too long or for longest when another one
/// connects, or the proxy drains. The first query is served even in a drain.
async fn connection(
    mut stream: TcpStream,
    mut open: Option<OpenConnection>,
    handler: &Handler,
    drain: &Watch,
) -> std::io::Result<()> {
    let at = socket::canonical(stream.local_addr()?);
    let asked = socket::original_dst(&stream).filter(|server| *server != at);
    let mut began = false;
    loop {
        let message = tokio::select! {
            () = drain.graceful(), if began => return Ok(()),
            () = closed_while_idle(&mut open) => return Ok(()),
            message = tokio::time::timeout(TCP_IDLE, relay::read(&mut stream)) => message,
        };
        open.iter().for_each(OpenConnection::busy);
        let Ok(message) = message else { return Ok(()) };
        let Some(message) = message? else { return Ok(()) };
        began = true;
        let answer = match handler.decide(&message, Transport::Tcp) {
            Outcome::Ignore => return Ok(()),
            Outcome::Answer(answer) => Some(answer),
            Outcome::Wait if query::is_stream(&message) => {
                handler.pass(&mut stream, &message, asked).await;
                return Ok(());
            }
            Outcome::Wait => handler.finish(&message, Transport::Tcp, asked).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        // Otherwise a client that never reads would occupy one of the pod's connections for ever.
        let Ok(written) = tokio::time::timeout(TCP_IDLE, relay::write(&mut stream, &answer)).await else {
            return Ok(());
        };
        written?;
    }
}

/// Marks the connection idle and returns when it is closed for another one.
async fn closed_while_idle(open: &mut Option<OpenConnection>) {
    match open {
        Some(open) => {
            open.idle();
            open.closed().await;
        }
        None => std::future::pending().await,
    }
}

/// Keeps a permanently failing socket from being polled in a busy loop.
fn retry_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(5), Duration::from_secs(1))
}

#[cfg(test)]
mod tests;
