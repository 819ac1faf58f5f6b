//! What can be set about the data plane. Read from nowhere: the root fills it in.

use std::time::Duration;

use isthmus_model::AgentPorts;
use isthmus_sys::socket::Transparent;

/// Settings of the data plane, the same for every pod.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ports of the listeners, which are never the target of a connection.
    pub ports: AgentPorts,
    /// Whether listeners must be able to keep the client's address towards the application.
    pub original_source: Transparent,
    /// How long one TCP connect may take.
    pub dial_deadline: Duration,
    /// How long one TLS handshake may take, on either side.
    pub tls_deadline: Duration,
    /// How long the far end of a tunnel may take to answer a CONNECT, dialling the tunnel included. Longer than a dial,
    /// since the far end dials too.
    pub answer_deadline: Duration,
    /// How long a connection waits for the control plane to tell of the pod it belongs to.
    pub workload_deadline: Duration,
    /// How long a new connection waits for a policy that applies to it and has not arrived; then it is refused.
    pub policy_deadline: Duration,
    /// How long a connection may stay open while such a policy has not arrived.
    pub policy_grace: Duration,
    /// TLS handshakes a pod's HBONE listener has under way at most; further ones wait in the backlog.
    pub handshakes: usize,
    /// How long one of them is safe when there are that many; after it, it is given up for one that waits.
    pub handshake_grace: Duration,
    /// Whether answers and records use baggage (`ENABLE_RESPONSE_BAGGAGE`).
    pub baggage: bool,
    /// How long a pooled tunnel without streams is kept.
    pub pool_idle: Duration,
    /// How long a gateway waits for a TLS ClientHello.
    pub hello_deadline: Duration,
    /// How outbound connections are tried again.
    pub retry: Retry,
}

/// How an outbound connection that was not made is tried again, and who is not chosen for a while after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Ends that are tried for one connection at most. 1: no retries.
    pub tries: u32,
    /// No try is begun so long after the first one. Longer than one dial, so that a black hole is tried past.
    pub window: Duration,
    /// Retries a second that a pod may always make.
    pub reserve: u32,
    /// Percent of its connections that it may retry besides.
    pub percent: u32,
    /// How long an end that refused is not chosen, the first time; each further time twice as long.
    pub ejection: Duration,
    /// But no longer than this.
    pub longest_ejection: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            tries: 3,
            window: Duration::from_secs(20),
            reserve: 10,
            percent: 20,
            ejection: Duration::from_secs(1),
            longest_ejection: Duration::from_secs(60),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ports: AgentPorts::default(),
            original_source: Transparent::BestEffort,
            dial_deadline: Duration::from_secs(10),
            tls_deadline: Duration::from_secs(10),
            answer_deadline: Duration::from_secs(30),
            workload_deadline: Duration::from_secs(5),
            policy_deadline: Duration::from_secs(5),
            policy_grace: Duration::from_secs(30),
            handshakes: 256,
            handshake_grace: Duration::from_secs(1),
            baggage: true,
            pool_idle: Duration::from_secs(300),
            hello_deadline: Duration::from_secs(5),
            retry: Retry::default(),
        }
    }
}

impl Config {
    /// Whether a connection to `port` of a pod would loop back to the agent.
    #[must_use]
    pub fn is_illegal(&self, port: u16) -> bool {
        self.ports.loops_back(port)
    }
}
