//! Settings of the data plane. They are not read here: the composition root maps environment variables to them. A field
//! that names no variable cannot be set by an operator.

use std::time::Duration;

use isthmus_model::AgentPorts;
use isthmus_rt::descriptors::DescriptorBudget;
use isthmus_sys::socket::Transparent;

/// Settings of the data plane, the same for every pod.
#[derive(Debug, Clone)]
pub struct Config {
    /// Ports of the listeners, which are never the target of a connection.
    pub ports: AgentPorts,
    /// Whether inbound connections are dialled to the application from the client's address (`IP_TRANSPARENT`):
    /// required (startup fails without), if possible, or never. `ENABLE_ORIG_SRC`.
    pub original_source: Transparent,
    /// Deadline of one TCP connect, to an upstream or to the application. 10 s as in ztunnel.
    pub dial_deadline: Duration,
    /// Deadline of one TLS handshake, as client or server, and of waiting for the first certificate of an identity. As
    /// long as a connect.
    pub tls_deadline: Duration,
    /// Deadline of the answer to a CONNECT, including the time to dial the tunnel. The default covers two dials and a
    /// handshake: the peer connects to its application before it answers.
    pub answer_deadline: Duration,
    /// How long a connection waits until the control plane has described the local workload. 5 s as in ztunnel.
    pub workload_deadline: Duration,
    /// How long a new connection waits for a policy that its workload references and the control plane has not sent;
    /// after that it is denied. The default is that of [`Self::workload_deadline`].
    pub policy_deadline: Duration,
    /// How long an open connection may stay open while such a policy is missing. Longer than for a new connection: it
    /// was allowed by the policies before, and a control plane that restarts gets time to resend them.
    pub policy_grace: Duration,
    /// Maximum of TLS handshakes in progress on a pod's HBONE listener, shared out between clients; twice as many
    /// connections wait, further ones are reset.
    pub handshakes: usize,
    /// Age after which a handshake may be evicted for a new connection while [`Self::handshakes`] are in progress. The
    /// default is several round trips across continents: an honest client finishes within it. Handshakes of a client with
    /// more than its share may be evicted earlier.
    pub handshake_grace: Duration,
    /// Whether answers to CONNECT carry baggage, and whether a peer's baggage labels it in telemetry.
    /// `ENABLE_RESPONSE_BAGGAGE`.
    pub baggage: bool,
    /// How long a pooled tunnel without streams is kept open. `POOL_UNUSED_RELEASE_TIMEOUT`, 5 min as in ztunnel.
    pub pool_idle: Duration,
    /// Deadline of a complete TLS ClientHello on a gateway's SNI listener.
    pub hello_deadline: Duration,
    /// Memory that the tunnels of one pod may hold, in bytes. `ISTHMUS_POD_MEMORY_BUDGET`.
    pub pod_memory: usize,
    /// Descriptors that pods may have open. `ISTHMUS_DESCRIPTOR_BUDGET`, `ISTHMUS_POD_DESCRIPTOR_BUDGET`.
    pub descriptors: DescriptorBudget,
    /// Retries of outbound connections, and outlier ejection.
    pub retry: Retry,
}

/// Retries of a connection that could not be established, and ejection of the upstreams that refused it. ztunnel has
/// neither, so no variable sets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Maximum of attempts per connection, the first one included. 1: no retries.
    pub tries: u32,
    /// No attempt is started this long after the first one. Longer than [`Config::dial_deadline`], so that an
    /// upstream that drops packets still leaves time for another attempt.
    pub window: Duration,
    /// Retries per second that a pod may make regardless of its number of connections.
    pub reserve: u32,
    /// Percentage of its connections that a pod may retry in addition.
    pub percent: u32,
    /// Duration of an upstream's first ejection; each further one is twice as long.
    pub ejection: Duration,
    /// Maximum duration of an ejection.
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
            pod_memory: usize::MAX / 4,
            descriptors: DescriptorBudget::unlimited(),
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
