//! Settings of `isthmus agent`: ztunnel's variables (reference: its configuration table), their defaults and meaning.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use isthmus_control::local::LocalConfig;
use isthmus_model::{AgentPorts, ClusterId, Namespace, NetworkId, NodeName, TrustDomain};
use isthmus_sys::socket::Keepalive;

use super::mesh::ProxyConfig;
use super::source::{ConfigErrors, Reader, Strings};
use super::trust::{self, TrustConfig};
use super::{LogConfig, Roots, Token};

/// Everything the agent role is told.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// Logging.
    pub log: LogConfig,
    /// Who and where this process is.
    pub place: Place,
    /// Control plane, `None` when disabled.
    pub xds: Option<ControlPlane>,
    /// Who signs certificates.
    pub ca: CaChoice,
    /// What peers are judged by.
    pub trust: TrustConfig,
    /// Static configuration.
    pub local: LocalConfig,
    /// HBONE windows and pool.
    pub tunnel: TunnelConfig,
    /// Sockets.
    pub sockets: SocketConfig,
    /// ZDS socket of the node role.
    pub inpod_uds: PathBuf,
    /// DNS proxy on or off.
    pub dns: bool,
    /// Where names that are not the mesh's are asked for: the name servers of our own resolv.conf.
    pub resolvers: Vec<SocketAddr>,
    /// Every port that the agent listens on.
    pub ports: AgentPorts,
    /// How long connections may live after SIGTERM.
    pub drain: Duration,
    /// Data plane threads; 0 means one per core.
    pub threads: usize,
    /// Requested certificate lifetime.
    pub secret_ttl: Duration,
    /// Whether responses carry baggage.
    pub response_baggage: bool,
    /// Lines to warn about once the log works.
    pub warnings: Vec<String>,
}

/// Who and where this process is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Node (`NODE_NAME`); empty means that every workload counts as local.
    pub node: NodeName,
    /// Own network.
    pub network: NetworkId,
    /// Own cluster.
    pub cluster: ClusterId,
    /// Cluster domain.
    pub domain: String,
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// Own pod's name.
    pub pod_name: String,
    /// Own pod's namespace.
    pub pod_namespace: String,
    /// Own service account.
    pub service_account: String,
    /// Own address.
    pub instance_ip: String,
    /// The namespace whose policies may apply to the whole mesh (`ISTHMUS_ROOT_NAMESPACE`, else the mesh config's
    /// `rootNamespace`).
    pub root_namespace: Namespace,
    /// Whether dry-run policies are logged at info instead of debug (`AUTHZ_POLICY_INFO_LOGGING`).
    pub loud_policies: bool,
    /// A namespace whose services win when several have one name (`PREFERED_SERVICE_NAMESPACE`, with one R).
    pub preferred_namespace: Option<Namespace>,
    /// Further node metadata.
    pub metadata: BTreeMap<String, String>,
    /// Further node metadata as JSON.
    pub json_metadata: BTreeMap<String, String>,
}

/// How the control plane is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// `https://host:port`.
    pub address: String,
    /// Trusted roots.
    pub roots: Roots,
    /// Bearer token.
    pub token: Token,
    /// A second name that its certificate may have.
    pub alt_hostname: Option<String>,
    /// Further request headers; values are secret.
    pub headers: BTreeMap<String, String>,
}

/// Who signs certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaChoice {
    /// The mesh's CA.
    Remote(ControlPlane),
    /// This process, from a public test key: no security at all.
    Fake,
    /// Nobody: only plaintext can be carried.
    None,
}

/// HBONE windows and pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelConfig {
    /// Bytes in flight of one stream; `None`: the default.
    pub stream_window: Option<u32>,
    /// Bytes in flight of one connection; `None`: the default.
    pub connection_window: Option<u32>,
    /// Largest frame accepted; `None`: the default.
    pub frame_size: Option<u32>,
    /// Streams of one pooled connection.
    pub max_streams: u16,
    /// How long an unused pooled connection is kept.
    pub idle: Duration,
}

/// How sockets are made.
#[derive(Debug, Clone)]
pub struct SocketConfig {
    /// `SO_MARK` of every socket in a pod.
    pub mark: u32,
    /// `SO_REUSEPORT` on listeners.
    pub reuse_port: bool,
    /// Keepalive of captured and dialled sockets.
    pub keepalive: Option<Keepalive>,
    /// Whether IPv6 is used at all.
    pub ipv6: bool,
    /// Whether the application sees the client's address: `None` when possible.
    pub original_source: Option<bool>,
}

impl AgentConfig {
    /// The admin interface, on loopback.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.ports.admin)
    }

    /// Metrics.
    #[must_use]
    pub fn metrics_address(&self) -> SocketAddr {
        SocketAddr::new(self.sockets.wildcard(), self.ports.metrics)
    }

    /// Readiness.
    #[must_use]
    pub fn readiness_address(&self) -> SocketAddr {
        SocketAddr::new(self.sockets.wildcard(), self.ports.readiness)
    }
}

impl SocketConfig {
    /// Every local address: the IPv6 wildcard covers both families.
    #[must_use]
    pub fn wildcard(&self) -> IpAddr {
        if self.ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
    }
}

/// Reads everything, touching nothing else than the files that the variables name.
///
/// # Errors
/// All bad values at once.
pub fn read(strings: &dyn Strings) -> Result<AgentConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let r = &mut reader;
    let mut warnings = Vec::new();
    refuse_unbuilt(r);
    let proxy = read_proxy_config(r, &mut warnings);
    let fake = r.flag("FAKE_CA", false);
    let inside_kubernetes = r.text("KUBERNETES_SERVICE_HOST").is_some();
    let (xds, ca) = read_control_planes(r, &proxy, fake, inside_kubernetes);
    let ipv6 = r.flag("IPV6_ENABLED", true);
    let local = read_local(r);
    let without_workloads = local.is_none() && xds.is_none();
    let config = AgentConfig {
        local: local.unwrap_or_default(),
        log: super::read_log(r),
        place: read_place(r, &proxy),
        ca: choose_ca(r, ca, fake, inside_kubernetes),
        trust: trust::read(r, &mut warnings),
        xds,
        tunnel: read_tunnel(r),
        sockets: read_sockets(r, ipv6),
        inpod_uds: r.text("INPOD_UDS").unwrap_or_else(|| "/var/run/ztunnel/ztunnel.sock".to_owned()).into(),
        dns: metadata(r, &proxy, "ISTIO_META_DNS_CAPTURE")
            .is_none_or(|text| text.eq_ignore_ascii_case("true")),
        resolvers: read_resolvers(),
        ports: read_ports(r, &proxy),
        drain: read_drain(r),
        threads: read_threads(r, &proxy),
        secret_ttl: r.duration("SECRET_TTL", Duration::from_secs(86_400)),
        response_baggage: r.flag("ENABLE_RESPONSE_BAGGAGE", true),
        warnings,
    };
    if without_workloads {
        reader.fail("XDS_ADDRESS is empty and neither LOCAL_XDS_PATH nor LOCAL_XDS is set: there would be no workloads");
    }
    reader.finish(config)
}

/// What ztunnel has and we have not built is an error when asked for, not silence.
fn refuse_unbuilt(r: &mut Reader<'_>) {
    if r.text("PROXY_MODE").is_some_and(|mode| mode != "shared") {
        r.fail(format!(
            "PROXY_MODE={:?}: only shared is supported",
            r.text("PROXY_MODE").unwrap_or_default()
        ));
    }
    for key in ["XDS_ON_DEMAND", "UNSTABLE_ENABLE_SOCKS5"] {
        if r.flag(key, false) {
            r.fail(format!("{key}=true is not supported"));
        }
    }
    if is_true(r, "TLS12_ENABLED") {
        r.fail("TLS12_ENABLED=true is not supported");
    }
    for key in ["ENABLE_PROXY", "LOCALHOST_APP_TUNNEL"] {
        if !r.flag(key, true) {
            r.fail(format!("{key}=false is not supported"));
        }
    }
}

/// Anything but exactly this is off.
fn is_true(r: &Reader<'_>, key: &str) -> bool {
    r.text(key).as_deref() == Some("true")
}

fn read_proxy_config(r: &mut Reader<'_>, warnings: &mut Vec<String>) -> ProxyConfig {
    let mut whence = "PROXY_CONFIG".to_owned();
    let parsed = match r.text("PROXY_CONFIG") {
        Some(text) => super::mesh::proxy_config(&text),
        None => {
            whence = trust::mesh_config(r).display().to_string();
            std::fs::read_to_string(&whence)
                .map_or_else(|_| Ok(ProxyConfig::default()), |t| super::mesh::mesh_default_config(&t))
        }
    };
    let config = parsed.unwrap_or_else(|error| {
        r.fail(format!("{whence}: {error}"));
        ProxyConfig::default()
    });
    warnings
        .extend(config.unknown.iter().map(|key| format!("{whence}: key {key} is not known and was ignored")));
    config
}

fn read_control_planes(
    r: &mut Reader<'_>,
    proxy: &ProxyConfig,
    fake: bool,
    inside: bool,
) -> (Option<ControlPlane>, Option<ControlPlane>) {
    let default = || match (&proxy.discovery_address, inside) {
        (Some(address), _) => address.clone(),
        (None, true) => "istiod.istio-system.svc:15012".to_owned(),
        (None, false) => "localhost:15012".to_owned(),
    };
    let mut plane = |address_key: &str, roots: &str, alt: &str, headers: &str| {
        let address = match r.raw(address_key) {
            Some(address) if address.is_empty() => return None,
            Some(address) => address,
            // A lab with the fake CA has no control plane unless it names one.
            None if fake => return None,
            None => default(),
        };
        Some(ControlPlane {
            address: super::with_scheme(&address),
            roots: super::read_roots(r, roots),
            token: super::read_token(r),
            alt_hostname: r.text(alt),
            headers: r.prefixed(headers),
        })
    };
    let xds = plane("XDS_ADDRESS", "XDS_ROOT_CA", "ALT_XDS_HOSTNAME", "XDS_HEADER_");
    let ca = plane("CA_ADDRESS", "CA_ROOT_CA", "ALT_CA_HOSTNAME", "CA_HEADER_");
    (xds, ca)
}

fn choose_ca(r: &mut Reader<'_>, remote: Option<ControlPlane>, fake: bool, inside: bool) -> CaChoice {
    let addressed = ["XDS_ADDRESS", "CA_ADDRESS"].into_iter().find(|key| r.text(key).is_some());
    match (remote, fake, addressed, inside) {
        (_, true, Some(key), _) => {
            r.fail(format!(
                "FAKE_CA=true together with {key}: certificates of a test key would meet a real mesh"
            ));
            CaChoice::None
        }
        (_, true, None, true) => {
            r.fail("FAKE_CA=true inside Kubernetes (KUBERNETES_SERVICE_HOST is set): its certificates protect nothing");
            CaChoice::None
        }
        (_, true, None, false) => CaChoice::Fake,
        (Some(remote), ..) => CaChoice::Remote(remote),
        (None, ..) => CaChoice::None,
    }
}

fn read_place(r: &Reader<'_>, proxy: &ProxyConfig) -> Place {
    let mut metadata =
        proxy.metadata.iter().map(|(k, v)| (meta_key(k), v.clone())).collect::<BTreeMap<_, _>>();
    metadata.extend(r.prefixed("ISTIO_META_"));
    let cluster = metadata.get("CLUSTER_ID").cloned().or_else(|| r.text("CLUSTER_ID"));
    let text = |key: &str| r.text(key).unwrap_or_default();
    Place {
        node: text("NODE_NAME").into(),
        network: text("NETWORK").into(),
        cluster: cluster.unwrap_or_else(|| "Kubernetes".to_owned()).into(),
        domain: r.text("CLUSTER_DOMAIN").unwrap_or_else(|| "cluster.local".to_owned()),
        trust_domain: text("TRUST_DOMAIN").as_str().into(),
        pod_name: text("POD_NAME"),
        pod_namespace: text("POD_NAMESPACE"),
        service_account: text("SERVICE_ACCOUNT"),
        preferred_namespace: r.text("PREFERED_SERVICE_NAMESPACE").map(Namespace::from),
        instance_ip: r.text("INSTANCE_IP").unwrap_or_else(|| "1.1.1.1".to_owned()),
        root_namespace: read_root_namespace(r),
        loud_policies: is_true(r, "AUTHZ_POLICY_INFO_LOGGING"),
        metadata,
        json_metadata: r.prefixed("ISTIO_METAJSON_"),
    }
}

fn read_root_namespace(r: &Reader<'_>) -> Namespace {
    let mesh = || super::mesh::root_namespace(&std::fs::read_to_string(trust::mesh_config(r)).ok()?);
    r.text("ISTHMUS_ROOT_NAMESPACE").or_else(mesh).unwrap_or_else(|| "istio-system".to_owned()).into()
}

fn meta_key(key: &str) -> String {
    key.strip_prefix("ISTIO_META_").unwrap_or(key).to_owned()
}

/// `LOCAL_XDS_PATH` or `LOCAL_XDS`; `None` when neither is set. What is of no use was reported and counts as empty.
fn read_local(r: &mut Reader<'_>) -> Option<LocalConfig> {
    let loaded = match (r.text("LOCAL_XDS_PATH"), r.text("LOCAL_XDS")) {
        (Some(_), Some(_)) => Err("LOCAL_XDS_PATH and LOCAL_XDS are both set: give one".to_owned()),
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

/// What HTTP/2 allows a window and a frame to be, in bytes.
const WINDOW: RangeInclusive<u32> = 1..=0x7fff_ffff;
const FRAME: RangeInclusive<u32> = 16_384..=16_777_215;

fn read_tunnel(r: &mut Reader<'_>) -> TunnelConfig {
    TunnelConfig {
        stream_window: r.within("HTTP2_STREAM_WINDOW_SIZE", WINDOW),
        connection_window: r.within("HTTP2_CONNECTION_WINDOW_SIZE", WINDOW),
        frame_size: r.within("HTTP2_FRAME_SIZE", FRAME),
        max_streams: r.parsed("POOL_MAX_STREAMS_PER_CONNECTION", 100, "a number from 0 to 65535"),
        idle: r.duration("POOL_UNUSED_RELEASE_TIMEOUT", Duration::from_secs(300)),
    }
}

fn read_sockets(r: &mut Reader<'_>, ipv6: bool) -> SocketConfig {
    // Read even when it is off: a bad value is one all the same.
    let keepalive = Keepalive {
        time: r.duration("KEEPALIVE_TIME", Duration::from_secs(180)),
        interval: r.duration("KEEPALIVE_INTERVAL", Duration::from_secs(180)),
        retries: r.parsed("KEEPALIVE_RETRIES", 9, "a number"),
        user_timeout: r.flag("USER_TIMEOUT_ENABLED", false),
    };
    let keepalive = r.flag("KEEPALIVE_ENABLED", true).then_some(keepalive);
    SocketConfig {
        mark: r.parsed("PACKET_MARK", 0x539, "a number"),
        reuse_port: r.flag("INPOD_PORT_REUSE", true),
        keepalive,
        ipv6,
        original_source: r.parsed_opt("ENABLE_ORIG_SRC", "true or false"),
    }
}

/// A setting that the mesh's operator may also give to all proxies as metadata; the environment wins.
fn metadata(r: &Reader<'_>, proxy: &ProxyConfig, key: &str) -> Option<String> {
    let given = || proxy.metadata.get(key).or_else(|| proxy.metadata.get(&meta_key(key))).cloned();
    r.text(key).or_else(given)
}

/// Name servers of `/etc/resolv.conf`, the resolver's own default when it names none.
fn read_resolvers() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let found = name_servers(&text);
    if found.is_empty() { vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53)] } else { found }
}

fn name_servers(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim().parse().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).collect()
}

fn read_ports(r: &mut Reader<'_>, proxy: &ProxyConfig) -> AgentPorts {
    let default = AgentPorts::WELL_KNOWN;
    AgentPorts {
        dns: read_dns_port(r, proxy).unwrap_or(default.dns),
        admin: proxy.admin_port.unwrap_or(default.admin),
        metrics: proxy.stats_port.unwrap_or(default.metrics),
        ..default
    }
}

fn read_dns_port(r: &mut Reader<'_>, proxy: &ProxyConfig) -> Option<u16> {
    let text = metadata(r, proxy, "ISTIO_META_DNS_PROXY_ADDR")?;
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
    if port.is_none() {
        r.fail(format!("ISTIO_META_DNS_PROXY_ADDR={text:?} is not localhost:<port>"));
    }
    port
}

/// `CONNECTION_TERMINATION_DEADLINE`, else the pod's grace period less what the end itself takes. A grace period of 0
/// means no time at all, not for ever.
fn read_drain(r: &mut Reader<'_>) -> Duration {
    let grace: Option<u64> = r.parsed_opt("TERMINATION_GRACE_PERIOD_SECONDS", "a number of seconds");
    let default = Duration::from_secs(match grace {
        None => 5,
        Some(0) => 0,
        Some(n) if n > 10 => n - 5,
        Some(n) => (n - 1).max(1),
    });
    r.duration("CONNECTION_TERMINATION_DEADLINE", default)
}

/// Threads of the data plane; the rules of the reference's §10.3.
fn read_threads(r: &mut Reader<'_>, proxy: &ProxyConfig) -> usize {
    let logical = std::thread::available_parallelism().map_or(1, usize::from);
    let limit =
        r.text("ZTUNNEL_RESOURCE_CPU_LIMIT").and_then(|text| cpus(r, "ZTUNNEL_RESOURCE_CPU_LIMIT", &text));
    let request = r
        .text("ZTUNNEL_RESOURCE_CPU_REQUEST")
        .and_then(|text| cpus(r, "ZTUNNEL_RESOURCE_CPU_REQUEST", &text));
    let alternative = r.text("ZTUNNEL_CPU_LIMIT").and_then(|text| cpus(r, "ZTUNNEL_CPU_LIMIT", &text));
    let cores = limit.or(alternative).unwrap_or(logical);
    if let Some(text) = r.text("ZTUNNEL_WORKER_THREADS") {
        return worker_threads(r, &text, cores);
    }
    let chosen = match (proxy.concurrency, limit) {
        (Some(0), _) => cores,
        (Some(n), _) => usize::from(n),
        (None, Some(limit)) => limit.max(request.unwrap_or(0)),
        (None, None) => cores.div_ceil(4).max(request.unwrap_or(0)).max(2),
    };
    chosen.max(1)
}

fn worker_threads(r: &mut Reader<'_>, text: &str, cores: usize) -> usize {
    let percent = text.strip_suffix('%').map(str::parse::<usize>);
    let count = match (percent, text.parse::<usize>()) {
        (Some(Ok(percent @ 1..=100)), _) => Some((cores * percent).div_ceil(100)),
        (None, Ok(0)) => Some(cores),
        (None, Ok(count)) => Some(count),
        _ => None,
    };
    count.unwrap_or_else(|| {
        r.fail(format!(
            "ZTUNNEL_WORKER_THREADS={text:?} is neither a number nor a percentage from 1% to 100%"
        ));
        cores
    })
}

/// `2`, `1.5` or `500m`, rounded up to whole cores.
fn cpus(r: &mut Reader<'_>, key: &str, text: &str) -> Option<usize> {
    let milli = match text.strip_suffix('m') {
        Some(milli) => milli.parse::<u64>().ok(),
        None => {
            let (whole, part) = text.split_once('.').unwrap_or((text, ""));
            let part = format!("{part:0<3}");
            let digits = part.get(..3).filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
            whole
                .parse::<u64>()
                .ok()
                .zip(digits.and_then(|d| d.parse::<u64>().ok()))
                .map(|(w, p)| w * 1000 + p)
        }
    };
    let cores = milli.and_then(|milli| usize::try_from(milli.div_ceil(1000)).ok());
    if cores.is_none() {
        r.fail(format!("{key}={text:?} is not a CPU quantity such as 2, 1.5 or 500m"));
    }
    cores
}

#[cfg(test)]
mod tests;
