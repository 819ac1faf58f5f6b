//! Settings of `isthmus node`: istio-cni's environment variables with their defaults, so that its chart works unchanged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use isthmus_node::capture::OWN_STACK_CLASSES;
use isthmus_proto::enroll::{Rules, Selector, default_selectors};

use super::log::{self, LogConfig};
use super::source::{ConfigErrors, Reader, Strings};

/// Every setting of the node role.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Logging.
    pub log: LogConfig,
    /// This node's name.
    pub node_name: String,
    /// Directory of the CNI plugin's socket and kubeconfig.
    pub run_dir: PathBuf,
    /// Unix socket on which ZDS is served to agents.
    pub zds_socket: PathBuf,
    /// Where the runtime's directory of network namespaces is mounted.
    pub netns_dir: PathBuf,
    /// `/proc` of the host, in which the namespaces of running pods are found.
    pub host_proc: PathBuf,
    /// Kubeconfig; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Whether DNS of pods is captured.
    pub dns_capture: bool,
    /// Whether IPv6 rules are programmed.
    pub ipv6: bool,
    /// Which pods are enrolled.
    pub rules: Rules,
    /// Source address that kubelet probes are translated to.
    pub probe_v4: Ipv4Addr,
    /// The same for IPv6.
    pub probe_v6: Ipv6Addr,
    /// The kubelet's user; `None`: it is detected.
    pub kubelet_uid: Option<u32>,
    /// Whether pods whose traffic cannot be captured run out of the mesh instead of being refused.
    pub mark_uncapturable: bool,
    /// Runtime classes with a network stack of their own.
    pub own_stack_classes: Vec<String>,
    /// Whether rules of enrolled pods are applied again at start.
    pub reconcile_on_startup: bool,
    /// Whether host rules are written to the network namespace of process 1 instead of the role's own.
    pub host_netns_of_init: bool,
    /// Address of the metrics endpoint.
    pub metrics: SocketAddr,
    /// Address of the readiness endpoint.
    pub ready: SocketAddr,
}

/// Reads every setting.
///
/// # Errors
/// Every bad value, not only the first.
pub fn read(strings: &dyn Strings) -> Result<NodeConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let config = read_into(&mut reader);
    reader.finish(config)
}

/// Reads every setting; the reader collects the errors.
pub(super) fn read_into(r: &mut Reader<'_>) -> NodeConfig {
    let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let path = |r: &Reader<'_>, key: &str, default: &str| {
        PathBuf::from(r.text(key).unwrap_or_else(|| default.to_owned()))
    };
    NodeConfig {
        log: log::read_log(r),
        node_name: r.required("NODE_NAME", "it selects which pods this role enrols"),
        run_dir: path(r, "CNI_AGENT_RUN_DIR", RUN_DIR),
        zds_socket: path(r, "ZTUNNEL_UDS_ADDRESS", "/var/run/ztunnel/ztunnel.sock"),
        netns_dir: path(r, "CNI_NETNS_DIR", "/host/var/run/netns"),
        host_proc: path(r, "HOST_PROC", "/host/proc"),
        kubeconfig: super::kubeconfig::read(r),
        dns_capture: r.go_flag("AMBIENT_DNS_CAPTURE", false),
        ipv6: r.go_flag("AMBIENT_IPV6", false),
        rules: Rules {
            selectors: read_selectors(r),
            exclude_namespaces: list(r, "EXCLUDE_NAMESPACES"),
            system_namespace: r.text("SYSTEM_NAMESPACE").unwrap_or_else(|| "istio-system".to_owned()),
        },
        probe_v4: r.parsed("HOST_PROBE_SNAT_IP", Ipv4Addr::new(169, 254, 7, 127), "an IPv4 address"),
        probe_v6: r.parsed("HOST_PROBE_SNAT_IPV6", PROBE_V6, "an IPv6 address"),
        kubelet_uid: r.parsed_opt("KUBELET_UID", "a user id"),
        mark_uncapturable: read_uncapturable(r),
        own_stack_classes: match r.text("OWN_STACK_RUNTIME_CLASSES") {
            None => OWN_STACK_CLASSES.map(str::to_owned).into(),
            Some(_) => list(r, "OWN_STACK_RUNTIME_CLASSES"),
        },
        reconcile_on_startup: r.go_flag("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", false),
        host_netns_of_init: r.go_flag("ALLOW_SWITCH_TO_HOST_NS", false),
        metrics: any(r.parsed("MONITORING_PORT", 15014, "a port from 0 to 65535")),
        ready: any(r.parsed("HEALTH_PORT", 8000, "a port from 0 to 65535")),
    }
}

/// Default of `CNI_AGENT_RUN_DIR`.
pub(super) const RUN_DIR: &str = "/var/run/istio-cni";

/// istio-cni's default.
const PROBE_V6: Ipv6Addr = Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// `AMBIENT_ENABLEMENT_SELECTOR`: a YAML list, of which an empty one, or an empty text, selects no pod; the chart's default
/// when unset.
pub(super) fn read_selectors(r: &mut Reader<'_>) -> Vec<Selector> {
    let Some(text) = r.raw("AMBIENT_ENABLEMENT_SELECTOR") else { return default_selectors() };
    if text.trim().is_empty() {
        return Vec::new();
    }
    yaml_serde::from_str(&text).unwrap_or_else(|error| {
        r.fail(format!("AMBIENT_ENABLEMENT_SELECTOR is not a YAML list of label selectors: {error}"));
        default_selectors()
    })
}

/// `UNCAPTURABLE_PODS`: `refuse` (the default) or `mark`.
fn read_uncapturable(r: &mut Reader<'_>) -> bool {
    match r.text("UNCAPTURABLE_PODS").as_deref() {
        None | Some("refuse") => false,
        Some("mark") => true,
        Some(other) => {
            r.fail(format!("UNCAPTURABLE_PODS is {other}, not refuse or mark"));
            false
        }
    }
}

pub(super) fn list(r: &Reader<'_>, key: &str) -> Vec<String> {
    let text = r.text(key).unwrap_or_default();
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn node_name_is_required_and_everything_else_has_a_default() {
        let mut env = BTreeMap::from([("HOST_PROBE_SNAT_IP".to_owned(), "x".to_owned())]);
        env.insert("AMBIENT_ENABLEMENT_SELECTOR".to_owned(), "7".to_owned());
        let found = read(&env).unwrap_err().0;
        for key in ["NODE_NAME", "HOST_PROBE_SNAT_IP", "AMBIENT_ENABLEMENT_SELECTOR", "KUBECONFIG"] {
            assert!(found.iter().any(|line| line.contains(key)), "{key}: {found:?}");
        }
        let env = BTreeMap::from([
            ("NODE_NAME".to_owned(), "n1".to_owned()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned()),
            ("EXCLUDE_NAMESPACES".to_owned(), "a, b".to_owned()),
        ]);
        let config = read(&env).unwrap();
        assert_eq!(config.probe_v4.to_string(), "169.254.7.127");
        assert_eq!(config.probe_v6.to_string(), "fd16:9254:7127:1337:ffff:ffff:ffff:ffff");
        assert_eq!(config.rules.exclude_namespaces, ["a", "b"]);
    }
}
