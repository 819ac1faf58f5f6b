//! The ports that the agent listens on. They are settings of the process: the root builds one value and hands it to
//! every part that binds them, redirects to them, or refuses them as a target.

/// HBONE: the port of any proxy of the mesh, unless the control plane names another.
pub const HBONE_PORT: u16 = 15008;

/// Bit of the mark (`SO_MARK`) that the agent gives its connections to applications where the pod's packet rules know it:
/// they keep those connections apart from the clients' own. Outside of the bits that rules compare with the agent's mark.
pub const LOCAL_MARK: u32 = 0x1000;

/// Ports of one agent: those in every pod's namespace, and those of the process itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentPorts {
    /// In pods: captured outbound connections.
    pub outbound: u16,
    /// In pods: captured plaintext inbound connections.
    pub inbound_plaintext: u16,
    /// In pods, and in the agent's own namespace: HBONE.
    pub inbound: u16,
    /// In pods: the DNS proxy (`ISTIO_META_DNS_PROXY_ADDR`).
    pub dns: u16,
    /// Of the process: the admin interface (`proxyAdminPort`), on loopback only.
    pub admin: u16,
    /// Of the process: metrics (`statsPort`).
    pub metrics: u16,
    /// Of the process: readiness.
    pub readiness: u16,
}

impl AgentPorts {
    /// What charts, dashboards and probes of the mesh expect.
    pub const WELL_KNOWN: Self = Self {
        outbound: 15001,
        inbound_plaintext: 15006,
        inbound: HBONE_PORT,
        dns: 15053,
        admin: 15000,
        metrics: 15020,
        readiness: 15021,
    };

    /// Listeners in a pod's namespace. None of them may be the target of a connection: it would loop back to the agent.
    #[must_use]
    pub const fn in_pods(&self) -> [u16; 4] {
        [self.outbound, self.inbound_plaintext, self.inbound, self.dns]
    }

    /// Whether a connection to this port of a pod would loop back to the agent. Other ports of the agent are not in the
    /// pod's namespace, where the application may use them.
    #[must_use]
    pub fn loops_back(&self, port: u16) -> bool {
        self.in_pods().contains(&port)
    }

    /// The only targets of tunnels to the agent's own pod: metrics and readiness, never the admin interface.
    #[must_use]
    pub const fn served_to_the_mesh(&self) -> [u16; 2] {
        [self.metrics, self.readiness]
    }
}

impl Default for AgentPorts {
    fn default() -> Self {
        Self::WELL_KNOWN
    }
}
