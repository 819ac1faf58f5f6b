//! Settings of `isthmus agent`: ztunnel's environment variables with their defaults, so that its chart works unchanged.
//! The parts are read by one module per concern; this one puts them together.

mod control_plane;
mod descriptors;
mod local_info;
mod memory;
mod network;
mod process;
mod sockets;
mod tunnel;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use isthmus_control::local::LocalConfig;
use isthmus_model::AgentPorts;

pub use self::control_plane::{CaChoice, ControlPlane, Roots, Token};
pub use self::descriptors::DescriptorConfig;
pub use self::local_info::LocalInfo;
pub use self::memory::MemoryConfig;
pub use self::sockets::SocketConfig;
pub use self::tunnel::TunnelConfig;
use super::log::{self, LogConfig};
use super::mesh::ProxyConfig;
use super::source::{ConfigErrors, Reader, Strings};
use super::trust::{self, TrustConfig};

/// Every setting of the agent role.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Logging.
    pub log: LogConfig,
    /// Node, cluster and pod that the process runs in.
    pub local_info: LocalInfo,
    /// The xDS server; `None` when `XDS_ADDRESS` is empty.
    pub xds: Option<ControlPlane>,
    /// What signs the workloads' certificates.
    pub ca: CaChoice,
    /// What peers' certificates are verified against.
    pub trust: TrustConfig,
    /// Workloads, services and policies from `LOCAL_XDS_PATH` or `LOCAL_XDS`.
    pub static_config: LocalConfig,
    /// HTTP/2 settings of HBONE tunnels.
    pub tunnel: TunnelConfig,
    /// File descriptors that pods may have open.
    pub descriptors: DescriptorConfig,
    /// Socket options.
    pub sockets: SocketConfig,
    /// Unix socket on which the node role serves ZDS (`INPOD_UDS`).
    pub inpod_uds: PathBuf,
    /// Unix socket for the hand-over of connections to a successor (`HANDOVER_UDS`); `None` when `HANDOVER` is off.
    pub handover: Option<PathBuf>,
    /// Whether pods get a DNS proxy (`ISTIO_META_DNS_CAPTURE`).
    pub dns: bool,
    /// Name servers of the agent's own resolv.conf: they are asked for names outside the mesh when the server that the
    /// application asked is unknown, and for the hostnames of workloads.
    pub resolvers: Vec<SocketAddr>,
    /// Every port that the agent listens on.
    pub ports: AgentPorts,
    /// How long open connections may drain after SIGTERM.
    pub drain: Duration,
    /// Threads that carry connections, at least 1.
    pub threads: usize,
    /// What the resources of the mesh may cost, in bytes (`ISTHMUS_CONFIG_BUDGET`).
    pub config_budget: u64,
    /// Lifetime requested for certificates (`SECRET_TTL`).
    pub secret_ttl: Duration,
    /// Whether HBONE responses carry baggage (`ENABLE_RESPONSE_BAGGAGE`).
    pub response_baggage: bool,
    /// Warnings that were found before the log was started.
    pub warnings: Vec<String>,
}

impl AgentConfig {
    /// Address of the admin interface, on loopback.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.ports.admin)
    }

    /// Address of the metrics endpoint.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        SocketAddr::new(self.sockets.wildcard(), self.ports.metrics)
    }

    /// Address of the readiness endpoint.
    #[must_use]
    pub fn readiness_address(&self) -> SocketAddr {
        SocketAddr::new(self.sockets.wildcard(), self.ports.readiness)
    }
}

/// Reads every setting. Opens no sockets; of files it reads only those that settings name, and resolv.conf.
///
/// # Errors
/// Every bad value, not only the first.
pub fn read(strings: &dyn Strings) -> Result<AgentConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let r = &mut reader;
    let mut warnings = Vec::new();
    reject_unsupported(r);
    let proxy = read_proxy_config(r, &mut warnings);
    let fake = r.flag("FAKE_CA", false);
    let inside_kubernetes = r.text("KUBERNETES_SERVICE_HOST").is_some();
    let (xds, ca) = control_plane::read_control_planes(r, &proxy, fake, inside_kubernetes);
    let ipv6 = r.flag("IPV6_ENABLED", true);
    let static_config = read_static_config(r);
    let without_workloads = static_config.is_none() && xds.is_none();
    let inpod_uds: PathBuf =
        r.text("INPOD_UDS").unwrap_or_else(|| "/var/run/ztunnel/ztunnel.sock".to_owned()).into();
    let config = AgentConfig {
        handover: process::read_handover(r, &inpod_uds),
        static_config: static_config.unwrap_or_default(),
        log: log::read_log(r),
        local_info: local_info::read_local_info(r, &proxy),
        ca: control_plane::choose_ca(r, ca, fake, inside_kubernetes),
        trust: trust::read(r, &mut warnings),
        xds,
        tunnel: tunnel::read_tunnel(r),
        descriptors: descriptors::read_descriptors(r),
        sockets: sockets::read_sockets(r, ipv6),
        inpod_uds,
        dns: proxy.setting(r, "ISTIO_META_DNS_CAPTURE").is_none_or(|text| text.eq_ignore_ascii_case("true")),
        resolvers: network::read_resolvers(),
        ports: network::read_ports(r, &proxy),
        drain: process::read_drain(r),
        threads: process::read_threads(r, &proxy),
        config_budget: memory::read_config_budget(r),
        secret_ttl: r.duration("SECRET_TTL", Duration::from_secs(86_400)),
        response_baggage: r.flag("ENABLE_RESPONSE_BAGGAGE", true),
        warnings,
    };
    if without_workloads {
        reader.fail("XDS_ADDRESS is empty and neither LOCAL_XDS_PATH nor LOCAL_XDS is set: there is no source of workloads; set one \
             of the three");
    }
    reader.finish(config)
}

/// Features of ztunnel that do not exist here are an error when they are asked for: ignoring them would surprise.
fn reject_unsupported(r: &mut Reader<'_>) {
    if r.text("PROXY_MODE").is_some_and(|mode| mode != "shared") {
        r.fail(format!(
            "PROXY_MODE={:?} is not supported: the only mode is shared",
            r.text("PROXY_MODE").unwrap_or_default()
        ));
    }
    for key in ["XDS_ON_DEMAND", "UNSTABLE_ENABLE_SOCKS5"] {
        if r.flag(key, false) {
            r.fail(format!("{key}=true is not supported: unset it"));
        }
    }
    if r.is_true("TLS12_ENABLED") {
        r.fail("TLS12_ENABLED=true is not supported: HBONE uses TLS 1.3 only");
    }
    for key in ["ENABLE_PROXY", "LOCALHOST_APP_TUNNEL"] {
        if !r.flag(key, true) {
            r.fail(format!("{key}=false is not supported: unset it"));
        }
    }
}

/// `PROXY_CONFIG` over `defaultConfig` of the mesh config file.
fn read_proxy_config(r: &mut Reader<'_>, warnings: &mut Vec<String>) -> ProxyConfig {
    let (own, file) = (r.text("PROXY_CONFIG"), trust::mesh_config(r).display().to_string());
    let mut read = |source: &str, parsed: Result<ProxyConfig, super::mesh::MeshConfigError>| {
        let config = parsed.unwrap_or_else(|error| {
            r.fail(format!("{source}: {error}"));
            ProxyConfig::default()
        });
        warnings.extend(config.unknown.iter().map(|key| format!("{source}: unknown key {key} was ignored")));
        config
    };
    let own = own.as_deref().map_or_else(|| Ok(ProxyConfig::default()), super::mesh::proxy_config);
    let base = std::fs::read_to_string(&file)
        .map_or_else(|_| Ok(ProxyConfig::default()), |text| super::mesh::mesh_default_config(&text));
    let base = read(&file, base);
    read("PROXY_CONFIG", own).over(base)
}

/// `LOCAL_XDS_PATH` or `LOCAL_XDS`; `None` when neither is set. A bad one is reported and read as empty.
fn read_static_config(r: &mut Reader<'_>) -> Option<LocalConfig> {
    let loaded = match (r.text("LOCAL_XDS_PATH"), r.text("LOCAL_XDS")) {
        (Some(_), Some(_)) => {
            Err("LOCAL_XDS_PATH and LOCAL_XDS are both set: unset one of the two".to_owned())
        }
        (Some(path), None) => std::fs::read_to_string(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| isthmus_control::local::load(&text).map_err(|error| error.to_string()))
            .map_err(|error| format!("LOCAL_XDS_PATH={path}: {error}")),
        (None, Some(text)) => {
            isthmus_control::local::load(&text).map_err(|error| format!("LOCAL_XDS: {error}"))
        }
        (None, None) => return None,
    };
    Some(loaded.unwrap_or_else(|error| {
        r.fail(error);
        LocalConfig::default()
    }))
}

#[cfg(test)]
mod tests;
