//! The proxy of one pod: takes queries, decides whose they are, and sends answers. It owns the pod's DNS sockets and
//! tasks, and bounds how much of either a pod may have.

mod handler;

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::{AgentPorts, Namespace, PodRef};
use isthmus_rt::backoff::Backoff;
use isthmus_rt::drain::Watch;
use isthmus_rt::fair::Share;
use isthmus_rt::task::Tasks;
use isthmus_state::State;
use isthmus_sys::socket::{self, Sockets};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::answer::{Failure, Transport, failure};
use crate::listeners::{BindError, Listeners};
use crate::metrics::Metrics;
use crate::{query, relay};
use handler::{Handler, Outcome};

/// Largest datagram.
const MAX_DATAGRAM: usize = u16::MAX as usize;
/// Queries and connections that are taken from a socket when it closes, at most.
const BACKLOG: usize = 1024;
/// A port that nobody sends from.
const DISCARD: u16 = 9;
/// How long a TCP client may be silent, and how long it may leave an answer unread.
const TCP_IDLE: Duration = Duration::from_secs(5);

/// How a pod's proxy behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Port on the pod's loopback addresses.
    pub port: u16,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// A namespace whose services win when nothing else decides.
    pub preferred_namespace: Option<Namespace>,
    /// DNS servers for what is not ours, in order.
    pub upstream: Vec<SocketAddr>,
    /// How long one of them may take.
    pub patience: Duration,
    /// Queries of one pod that may wait for a server at a time; further ones fail at once.
    pub max_waiting: usize,
    /// TCP connections of one pod at a time; further ones wait to be accepted.
    pub max_connections: usize,
}

/// A pod's proxy. Dropping it stops everything at once.
#[derive(Debug)]
pub struct DnsProxy {
    udp: Vec<SocketAddr>,
    tcp: Vec<SocketAddr>,
    /// One for each listener.
    loops: Tasks,
    /// What they started. Kept here, so that a listener that ends in a drain does not take its queries with it.
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
            patience: Duration::from_secs(4),
            max_waiting: 256,
            max_connections: 64,
        }
    }
}

// === impl DnsProxy ===

impl DnsProxy {
    /// Listens in the pod's namespace and serves until drained or dropped, on the pod's share of CPU time. `sockets` makes
    /// the sockets towards the servers, too. Must be called inside a runtime.
    ///
    /// # Errors
    /// When no address can be listened on.
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
        let connections = Arc::new(Semaphore::new(config.max_connections));
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

    /// Where UDP is served.
    #[must_use]
    pub fn udp_addresses(&self) -> &[SocketAddr] {
        &self.udp
    }

    /// Where TCP is served.
    #[must_use]
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// Whether it still takes queries.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        !self.loops.is_empty()
    }

    /// How many datagrams wait for an answer and TCP connections are open.
    #[must_use]
    pub fn active(&self) -> usize {
        self.queries.len()
    }
}

/// Takes datagrams until the drain begins. Most are decided in here, so a panic over one of them is caught: the others
/// are still to be served.
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
                tracing::debug!(%error, "cannot receive a DNS query");
                tokio::time::sleep(backoff.next_delay()).await;
                continue;
            }
        };
        backoff.reset();
        datagram(&buffer[..length], client, &socket, &handler, &decide, &drain, &tasks).await;
    }
    // What has arrived here is read by nobody else.
    let Ok(rest) = retired(&socket) else { return };
    for _ in 0..BACKLOG {
        let Ok((length, client)) = rest.recv_from(&mut buffer) else { return };
        datagram(&buffer[..length], client, &socket, &handler, &decide, &drain, &tasks).await;
    }
}

/// A second handle of a socket that is given nothing new: connected to a port where nobody is, it can still send, and
/// what comes goes to the agent that shares the port, even while answers are still to be sent from here.
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
        tracing::error!(%client, "a DNS query made the proxy panic");
        failure(message, Failure::Server).map_or(Outcome::Ignore, Outcome::Answer)
    });
    match outcome {
        Outcome::Ignore => {}
        Outcome::Answer(answer) => send(socket, &answer, client).await,
        Outcome::Wait => wait_for_answer(message.to_vec(), client, socket, handler, drain, tasks).await,
    }
}

/// Answers a datagram that has to wait for somebody, beside those that do not.
async fn wait_for_answer(
    message: Vec<u8>,
    client: SocketAddr,
    socket: &Arc<UdpSocket>,
    handler: &Arc<Handler>,
    drain: &Watch,
    tasks: &Tasks,
) {
    let Ok(permit) = Arc::clone(&handler.waiting).try_acquire_owned() else {
        handler.overloaded(&message, Transport::Udp);
        if let Some(answer) = failure(&message, Failure::Server) {
            send(socket, &answer, client).await;
        }
        return;
    };
    // At once: the kernel forgets, and the client may use its port for something else.
    let asked = socket.local_addr().ok().and_then(|at| handler.asked(client, at));
    let (socket, handler, drain) = (Arc::clone(socket), Arc::clone(handler), drain.clone());
    tasks.spawn("dns query", async move {
        let _permit = permit;
        tokio::select! {
            () = drain.forced() => {}
            answer = handler.finish(&message, Transport::Udp, asked) => if let Some(answer) = answer {
                send(&socket, &answer, client).await;
            },
        }
    });
}

async fn send(socket: &UdpSocket, answer: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        tracing::debug!(%client, %error, "cannot send a DNS answer");
    }
}

async fn tcp_loop(
    listener: TcpListener,
    handler: Arc<Handler>,
    drain: Watch,
    tasks: Tasks,
    connections: Arc<Semaphore>,
) {
    let mut backoff = retry_backoff();
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            Ok((permit, listener.accept().await?.0))
        };
        let accepted: std::io::Result<_> = tokio::select! {
            biased;
            () = drain.graceful() => break,
            accepted = next => accepted,
        };
        let (permit, stream) = match accepted {
            // The semaphore is never closed.
            Ok((Err(_), _)) => return,
            Ok((Ok(permit), stream)) => (permit, stream),
            Err(error) => {
                tracing::debug!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(backoff.next_delay()).await;
                continue;
            }
        };
        backoff.reset();
        take(stream, Some(permit), &handler, &drain, &tasks);
    }
    // Connections that wait to be accepted are established for their clients: closing the listener would reset them.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..BACKLOG {
        let Ok((stream, _)) = listener.accept() else { return };
        let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) else {
            continue;
        };
        take(stream, None, &handler, &drain, &tasks);
    }
}

fn take(
    stream: TcpStream,
    permit: Option<OwnedSemaphorePermit>,
    handler: &Arc<Handler>,
    drain: &Watch,
    tasks: &Tasks,
) {
    let (handler, drain) = (Arc::clone(handler), drain.clone());
    tasks.spawn("dns connection", async move {
        let _permit = permit;
        tokio::select! {
            () = drain.forced() => {}
            served = connection(stream, &handler, &drain) => if let Err(error) = served {
                tracing::debug!(%error, "DNS connection failed");
            },
        }
    });
}

/// One query after the other, until the client ends it, is silent for too long, or the proxy drains; the first one is
/// waited for even then.
async fn connection(mut stream: TcpStream, handler: &Handler, drain: &Watch) -> std::io::Result<()> {
    let at = socket::canonical(stream.local_addr()?);
    let asked = socket::original_dst(&stream).filter(|server| *server != at);
    let mut began = false;
    loop {
        let message = tokio::select! {
            () = drain.graceful(), if began => return Ok(()),
            message = tokio::time::timeout(TCP_IDLE, relay::read(&mut stream)) => message,
        };
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
            Outcome::Wait => match handler.waiting.try_acquire() {
                Ok(_permit) => handler.finish(&message, Transport::Tcp, asked).await,
                Err(_) => {
                    handler.overloaded(&message, Transport::Tcp);
                    failure(&message, Failure::Server)
                }
            },
        };
        let Some(answer) = answer else { return Ok(()) };
        // A client that asks and does not read would keep its place among the pod's connections for ever.
        let Ok(written) = tokio::time::timeout(TCP_IDLE, relay::write(&mut stream, &answer)).await else {
            return Ok(());
        };
        written?;
    }
}

/// A socket that fails for good must not be asked again and again.
fn retry_backoff() -> Backoff {
    Backoff::new(Duration::from_millis(5), Duration::from_secs(1))
}

#[cfg(test)]
mod tests;
