//! Settings of `isthmus install-cni`: istio-cni's environment variables and flags with their defaults, so that its chart
//! works unchanged.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use isthmus_install::conflist::{Kind, Layout};
use isthmus_install::entry::Entry;
use isthmus_install::{Config, server_url};
use serde_json::{Map, Value};

use super::flags::LOG_OUTPUT_LEVEL;
use super::log::{self, LogConfig};
use super::node::{self, NodeConfig};
use super::source::{ConfigErrors, Reader, Strings};

/// Where Kubernetes mounts the account of a pod.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where an image may have the plugin, besides beside this program.
const BINARIES: [&str; 2] = ["/opt/cni/bin/isthmus-cni", "/opt/cni/bin/istio-cni"];

/// Every setting of the installer.
#[derive(Debug, Clone)]
pub struct InstallerConfig {
    /// Logging.
    pub log: LogConfig,
    /// What is installed, and where.
    pub install: Config,
    /// The node role, which runs in the same process; `None`: the plugin is installed only.
    pub node: Option<NodeConfig>,
    /// Kubeconfig of this process; `None`: the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Address of the metrics endpoint.
    pub metrics: SocketAddr,
    /// Address of the readiness endpoint.
    pub ready: SocketAddr,
}

/// Reads every setting.
///
/// # Errors
/// Every bad value, not only the first.
pub fn read(strings: &dyn Strings) -> Result<InstallerConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let r = &mut reader;
    let ambient = r.go_flag("AMBIENT_ENABLED", false);
    let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    let (node, kubeconfig) = if ambient {
        let node = node::read_into(r);
        let kubeconfig = node.kubeconfig.clone();
        (Some(node), kubeconfig)
    } else {
        (None, super::kubeconfig::read(r))
    };
    let config = InstallerConfig {
        log: log::read_log(r),
        install: read_install(r, node.as_ref()),
        node,
        kubeconfig,
        metrics: any(r.parsed("MONITORING_PORT", 15014, "a port from 0 to 65535")),
        ready: any(r.parsed("HEALTH_PORT", 8000, "a port from 0 to 65535")),
    };
    reader.finish(config)
}

fn read_install(r: &mut Reader<'_>, node: Option<&NodeConfig>) -> Config {
    let ambient = node.is_some();
    let path = |r: &Reader<'_>, key: &str, default: &str| {
        PathBuf::from(r.text(key).unwrap_or_else(|| default.to_owned()))
    };
    let namespace = r.text("POD_NAMESPACE").or_else(|| r.text("SYSTEM_NAMESPACE"));
    let namespace = namespace.unwrap_or_else(|| "istio-system".to_owned());
    let service_account_dir = path(r, "SERVICE_ACCOUNT_DIR", SERVICE_ACCOUNT);
    let roots = r.text("KUBE_CA_FILE").map_or_else(|| service_account_dir.join("ca.crt"), PathBuf::from);
    let skip_verify = r.go_flag("SKIP_TLS_VERIFY", false);
    Config {
        binary: read_binary(r),
        bin_dir: path(r, "MOUNTED_CNI_BIN_DIR", "/host/opt/cni/bin"),
        net_dir: path(r, "MOUNTED_CNI_NET_DIR", "/host/etc/cni/net.d"),
        run_dir: path(r, "CNI_AGENT_RUN_DIR", node::RUN_DIR),
        service_account_dir,
        layout: read_layout(r, ambient),
        conflist_mode: if r.go_flag("CNI_CONF_GROUP_READ", false) { 0o640 } else { 0o600 },
        kubeconfig_mode: read_mode(r, "KUBECONFIG_MODE", 0o600),
        entry: read_entry(r, ambient, &namespace),
        server: read_server(r),
        roots: (!skip_verify).then_some(roots),
        plugin_account: r.text("CNI_PLUGIN_SERVICE_ACCOUNT"),
        namespace,
        daemon_set: read_daemon_set(r),
        node: match node {
            Some(node) => node.node_name.clone(),
            None => {
                r.required("NODE_NAME", "at the end it is asked whether the DaemonSet still wants this node")
            }
        },
        always_remove: r.go_flag("AMBIENT_DISABLE_SAFE_UPGRADE", false),
    }
}

fn read_layout(r: &mut Reader<'_>, ambient: bool) -> Layout {
    let (chained, owned) =
        (r.go_flag("CHAINED_CNI_PLUGIN", true), r.go_flag("ISTIO_OWNED_CNI_CONFIG", false));
    if owned && !(chained && ambient) {
        r.fail("ISTIO_OWNED_CNI_CONFIG=true needs CHAINED_CNI_PLUGIN=true and AMBIENT_ENABLED=true");
    }
    let name = read_file_name(r, "CNI_CONF_NAME");
    // The chart writes the second, istio-cni reads the first.
    let own = read_file_name(r, "ISTIO_OWNED_CNI_CONFIG_FILENAME")
        .or_else(|| read_file_name(r, "ISTIO_OWNED_CNI_CONF_FILENAME"));
    let own = own.unwrap_or_else(|| "02-istio-cni.conflist".to_owned());
    if !own.ends_with(".conflist") {
        r.fail(format!("ISTIO_OWNED_CNI_CONFIG_FILENAME={own:?} does not end with .conflist"));
    }
    let kind = match (chained, owned) {
        (true, true) => Kind::Owned,
        (true, false) => Kind::Chained,
        (false, _) => Kind::Standalone,
    };
    Layout { name, kind, owned: own }
}

/// A name in the CNI folder, not a path that leads out of it.
fn read_file_name(r: &mut Reader<'_>, key: &str) -> Option<String> {
    let name = r.text(key)?;
    let plain = Path::new(&name).file_name().is_some_and(|file| file == name.as_str());
    if !plain {
        r.fail(format!("{key}={name:?} is not the name of a file"));
    }
    Some(name)
}

fn read_entry(r: &mut Reader<'_>, ambient: bool, namespace: &str) -> Entry {
    let level = r.text("LOG_LEVEL").or_else(|| r.text(LOG_OUTPUT_LEVEL));
    Entry {
        template: read_template(r),
        log_level: level.unwrap_or_else(|| "info".to_owned()),
        run_dir: r.text("CNI_AGENT_RUN_DIR").unwrap_or_else(|| node::RUN_DIR.to_owned()),
        ambient_enabled: ambient,
        selectors: node::read_selectors(r),
        exclude_namespaces: node::list(r, "EXCLUDE_NAMESPACES"),
        pod_namespace: namespace.to_owned(),
        native_nftables: r.go_flag("NATIVE_NFTABLES", false),
        retry: r.go_flag("ENABLE_AMBIENT_DETECTION_RETRY", false),
    }
}

/// Further keys of the entry: a JSON object in a variable or in a file.
fn read_template(r: &mut Reader<'_>) -> Map<String, Value> {
    let file = r.text("CNI_NETWORK_CONFIG_FILE");
    let (key, text) = match (r.text("CNI_NETWORK_CONFIG"), file) {
        (Some(text), _) => ("CNI_NETWORK_CONFIG", Ok(text)),
        (None, Some(path)) => ("CNI_NETWORK_CONFIG_FILE", std::fs::read_to_string(path)),
        (None, None) => return Map::new(),
    };
    let parsed = text.map_err(|error| error.to_string());
    let parsed = parsed.and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
    parsed.unwrap_or_else(|error| {
        r.fail(format!("{key} is not a JSON object: {error}"));
        Map::new()
    })
}

fn read_binary(r: &mut Reader<'_>) -> PathBuf {
    if let Some(path) = r.text("CNI_PLUGIN_BINARY") {
        if let Err(error) = std::fs::File::open(&path) {
            r.fail(format!("CNI_PLUGIN_BINARY={path}: {error}"));
        }
        return path.into();
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("isthmus-cni")));
    let found = beside.into_iter().chain(BINARIES.map(PathBuf::from)).find(|path| path.exists());
    found.unwrap_or_else(|| {
        r.fail("CNI_PLUGIN_BINARY is not set, and there is no isthmus-cni beside this program nor in /opt/cni/bin");
        PathBuf::new()
    })
}

/// Where the plugin reaches the API server: as every pod does.
fn read_server(r: &mut Reader<'_>) -> String {
    let needed = "every pod has it; the CNI plugin reaches the API server there";
    let (host, port) =
        (r.required("KUBERNETES_SERVICE_HOST", needed), r.required("KUBERNETES_SERVICE_PORT", needed));
    let protocol = r.text("KUBERNETES_SERVICE_PROTOCOL").unwrap_or_else(|| "https".to_owned());
    server_url(&protocol, &host, &port)
}

/// The mode of a file as Go reads a number: octal after a leading zero, else decimal.
fn read_mode(r: &mut Reader<'_>, key: &str, default: u32) -> u32 {
    let Some(text) = r.text(key) else { return default };
    let octal = text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|rest| !rest.is_empty()));
    let mode = octal.map_or_else(|| text.parse().ok(), |digits| u32::from_str_radix(digits, 8).ok());
    mode.filter(|mode| *mode <= 0o777).unwrap_or_else(|| {
        r.fail(format!("{key}={text:?} is not the mode of a file: write 0600 in octal, or 384"));
        default
    })
}

/// The DaemonSet of this pod: its pods are named after it, with a suffix of the controller.
fn read_daemon_set(r: &Reader<'_>) -> String {
    let of_pod = r.text("POD_NAME").and_then(|pod| Some(pod.rsplit_once('-')?.0.to_owned()));
    r.text("DAEMONSET_NAME").or(of_pod).unwrap_or_else(|| "istio-cni-node".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn parse(with: &[(&str, &str)]) -> Result<InstallerConfig, Vec<String>> {
        let base = [
            ("NODE_NAME", "n1"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
            ("KUBERNETES_SERVICE_PORT", "443"),
            ("CNI_PLUGIN_BINARY", "/bin/true"),
        ];
        let env: BTreeMap<_, _> =
            base.iter().chain(with).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        read(&env).map_err(|errors| errors.0)
    }

    #[test]
    fn the_defaults_are_istio_cnis() {
        let config = parse(&[]).unwrap();
        assert!(config.node.is_none(), "ambient mode is off");
        let it = config.install;
        assert_eq!(it.bin_dir, PathBuf::from("/host/opt/cni/bin"));
        assert_eq!(it.net_dir, PathBuf::from("/host/etc/cni/net.d"));
        assert_eq!(it.run_dir, PathBuf::from("/var/run/istio-cni"));
        assert_eq!(it.layout.kind, Kind::Chained);
        assert_eq!((it.conflist_mode, it.kubeconfig_mode), (0o600, 0o600));
        assert_eq!(it.server, "https://10.96.0.1:443");
        assert_eq!(it.roots, Some("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt".into()));
        assert_eq!((it.daemon_set.as_str(), it.always_remove), ("istio-cni-node", false));
        assert_eq!((config.metrics.port(), config.ready.port()), (15014, 8000));
    }

    /// What the chart's profile `ambient` puts into the ConfigMap and the pod.
    #[test]
    fn the_charts_configuration_is_read() {
        let config = parse(&[
            ("CURRENT_AGENT_VERSION", "1.30.0"),
            ("AMBIENT_ENABLED", "true"),
            (
                "AMBIENT_ENABLEMENT_SELECTOR",
                "- podSelector:\n    matchLabels:\n      istio.io/dataplane-mode: ambient\n",
            ),
            ("AMBIENT_DNS_CAPTURE", "true"),
            ("AMBIENT_IPV6", "1"),
            ("AMBIENT_RECONCILE_POD_RULES_ON_STARTUP", "T"),
            ("ENABLE_AMBIENT_DETECTION_RETRY", "false"),
            ("ISTIO_OWNED_CNI_CONFIG", "false"),
            ("ISTIO_OWNED_CNI_CONF_FILENAME", ""),
            ("CHAINED_CNI_PLUGIN", "true"),
            ("EXCLUDE_NAMESPACES", "kube-system"),
            ("NATIVE_NFTABLES", "false"),
            ("REPAIR_ENABLED", "true"),
            ("REPAIR_RUN_AS_DAEMON", "true"),
            ("ALLOW_SWITCH_TO_HOST_NS", "true"),
            ("POD_NAME", "istio-cni-node-x7k2p"),
            ("POD_NAMESPACE", "kube-system"),
            ("LOG_LEVEL", "info"),
            ("GOMEMLIMIT", "104857600"),
        ])
        .unwrap();
        let node = config.node.unwrap();
        assert!(node.dns_capture && node.ipv6 && node.reconcile_on_startup && node.host_netns_of_init);
        assert_eq!(node.netns_dir, PathBuf::from("/host/var/run/netns"));
        let entry = config.install.entry;
        assert!(entry.ambient_enabled && !entry.retry);
        assert_eq!((entry.selectors.len(), entry.pod_namespace.as_str()), (1, "kube-system"));
        assert_eq!(entry.exclude_namespaces, ["kube-system"]);
        assert_eq!(config.install.daemon_set, "istio-cni-node");
    }

    #[test]
    fn every_bad_value_is_named() {
        let cases = [
            ("AMBIENT_ENABLED", "yes", "AMBIENT_ENABLED=\"yes\" is not a boolean"),
            ("ISTIO_OWNED_CNI_CONFIG", "true", "needs CHAINED_CNI_PLUGIN"),
            ("ISTIO_OWNED_CNI_CONFIG_FILENAME", "x.conf", ".conflist"),
            ("CNI_CONF_NAME", "../x.conflist", "is not the name of a file"),
            ("KUBECONFIG_MODE", "600", "write 0600"),
            ("KUBECONFIG_MODE", "0999", "write 0600"),
            ("CNI_NETWORK_CONFIG", "[]", "CNI_NETWORK_CONFIG is not a JSON object"),
            ("CNI_NETWORK_CONFIG_FILE", "/nowhere", "CNI_NETWORK_CONFIG_FILE"),
            ("CNI_PLUGIN_BINARY", "/nowhere", "CNI_PLUGIN_BINARY=/nowhere"),
            ("KUBERNETES_SERVICE_PORT", "", "KUBERNETES_SERVICE_PORT is not set"),
            ("AMBIENT_ENABLEMENT_SELECTOR", "{", "AMBIENT_ENABLEMENT_SELECTOR"),
            ("MONITORING_PORT", "x", "MONITORING_PORT"),
        ];
        for (key, value, part) in cases {
            let errors = parse(&[(key, value)]).unwrap_err();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(part), "{key}={value}: {errors:?}");
        }
    }

    #[test]
    fn modes_are_numbers_as_go_reads_them() {
        for (text, want) in [("0600", 0o600), ("0o640", 0o640), ("384", 0o600), ("0", 0)] {
            assert_eq!(parse(&[("KUBECONFIG_MODE", text)]).unwrap().install.kubeconfig_mode, want, "{text}");
        }
    }

    #[test]
    fn an_empty_list_of_selectors_means_no_pod() {
        for text in ["[]", ""] {
            let config =
                parse(&[("AMBIENT_ENABLEMENT_SELECTOR", text), ("AMBIENT_ENABLED", "true")]).unwrap();
            assert!(config.install.entry.selectors.is_empty(), "{text:?}");
            assert!(config.node.unwrap().rules.selectors.is_empty(), "{text:?}");
        }
        assert_eq!(parse(&[]).unwrap().install.entry.selectors.len(), 2, "ours, when nothing is said");
    }
}
