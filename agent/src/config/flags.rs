//! The command line of the installer: every setting as a flag too, as istio-cni has it. A flag wins over its variable. It
//! knows names and whether one is a boolean; what a value means is the business of who reads the setting.

use std::collections::BTreeMap;

use super::source::{ConfigErrors, Strings, go_bool};

/// The flag of the log's scopes, as a variable; the plugin logs as much.
pub(super) const LOG_OUTPUT_LEVEL: &str = "LOG_OUTPUT_LEVEL";
const LOG_AS_JSON: &str = "LOG_AS_JSON";

/// Settings that take a value, by their variables.
const VALUES: [&str; 47] = [
    LOG_OUTPUT_LEVEL,
    "AMBIENT_ENABLEMENT_SELECTOR",
    "CNI_AGENT_RUN_DIR",
    "CNI_CONF_NAME",
    "CNI_NETNS_DIR",
    "CNI_NETWORK_CONFIG",
    "CNI_NETWORK_CONFIG_FILE",
    "CNI_PLUGIN_BINARY",
    "CNI_PLUGIN_SERVICE_ACCOUNT",
    "CTRLZ_ADDRESS",
    "CTRLZ_PORT",
    "CURRENT_AGENT_VERSION",
    "DAEMONSET_NAME",
    "EXCLUDE_NAMESPACES",
    "FORCE_IPTABLES_BINARY",
    "HEALTH_PORT",
    "HOST_PROBE_SNAT_IP",
    "HOST_PROBE_SNAT_IPV6",
    "HOST_PROC",
    "ISTIO_OWNED_CNI_CONFIG_FILENAME",
    "ISTIO_OWNED_CNI_CONF_FILENAME",
    "KUBECONFIG",
    "KUBECONFIG_MODE",
    "KUBELET_UID",
    "KUBE_CA_FILE",
    "LOG_CALLER",
    "LOG_LEVEL",
    "LOG_STACKTRACE_LEVEL",
    "LOG_TARGET",
    "MONITORING_PORT",
    "MOUNTED_CNI_BIN_DIR",
    "MOUNTED_CNI_NET_DIR",
    "NODE_NAME",
    "OWN_STACK_RUNTIME_CLASSES",
    "POD_NAME",
    "POD_NAMESPACE",
    "REPAIR_BROKEN_POD_LABEL_KEY",
    "REPAIR_BROKEN_POD_LABEL_VALUE",
    "REPAIR_INIT_CONTAINER_NAME",
    "REPAIR_NODE_NAME",
    "REPAIR_SIDECAR_ANNOTATION",
    "REVISION",
    "SERVICE_ACCOUNT_DIR",
    "SYSTEM_NAMESPACE",
    "UNCAPTURABLE_PODS",
    "VKLOG",
    "ZTUNNEL_UDS_ADDRESS",
];

/// Settings that are true or false; such a flag may stand alone.
const BOOLEANS: [&str; 20] = [
    LOG_AS_JSON,
    "ALLOW_SWITCH_TO_HOST_NS",
    "AMBIENT_DISABLE_SAFE_UPGRADE",
    "AMBIENT_DNS_CAPTURE",
    "AMBIENT_ENABLED",
    "AMBIENT_ENABLE_AWS_BRANCH_ENI_PROBE",
    "AMBIENT_IPV6",
    "AMBIENT_RECONCILE_POD_RULES_ON_STARTUP",
    "AMBIENT_USE_SCOPED_XTABLES_LOCKING",
    "CHAINED_CNI_PLUGIN",
    "CNI_CONF_GROUP_READ",
    "ENABLE_AMBIENT_DETECTION_RETRY",
    "ISTIO_OWNED_CNI_CONFIG",
    "NATIVE_NFTABLES",
    "REPAIR_DELETE_PODS",
    "REPAIR_ENABLED",
    "REPAIR_LABEL_PODS",
    "REPAIR_REPAIR_PODS",
    "REPAIR_RUN_AS_DAEMON",
    "SKIP_TLS_VERIFY",
];

/// The environment with flags in front of it.
pub struct WithFlags<'a> {
    flags: BTreeMap<String, String>,
    environment: &'a dyn Strings,
}

impl<'a> WithFlags<'a> {
    /// Reads the arguments.
    ///
    /// # Errors
    /// With every argument that is no flag of the installer, and a level of the log that is none.
    pub fn parse(
        args: impl Iterator<Item = String>,
        environment: &'a dyn Strings,
    ) -> Result<Self, ConfigErrors> {
        let mut errors = Vec::new();
        let mut flags = BTreeMap::new();
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
                errors.push(format!(
                    "unknown argument {arg:?}: the installer takes flags only, as --cni-conf-name=NAME"
                ));
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let variable = name.to_ascii_uppercase().replace('-', "_");
            let known =
                |names: &[&str]| name == name.to_ascii_lowercase() && names.contains(&variable.as_str());
            let value = if known(&BOOLEANS) {
                value.unwrap_or_else(|| "true".to_owned())
            } else if !known(&VALUES) {
                errors.push(format!(
                    "unknown flag --{name}: `isthmus help` says where the settings are listed"
                ));
                continue;
            } else if let Some(value) = value.or_else(|| args.next()) {
                value
            } else {
                errors.push(format!("flag --{name} needs a value"));
                continue;
            };
            flags.insert(variable, value);
        }
        translate_log(&mut flags, environment, &mut errors);
        if errors.is_empty() { Ok(Self { flags, environment }) } else { Err(ConfigErrors(errors)) }
    }
}

impl Strings for WithFlags<'_> {
    fn get(&self, key: &str) -> Option<String> {
        self.flags.get(key).cloned().or_else(|| self.environment.get(key))
    }

    fn all(&self) -> Vec<(String, String)> {
        let mut all: BTreeMap<_, _> = self.environment.all().into_iter().collect();
        all.extend(self.flags.clone());
        all.into_iter().collect()
    }
}

/// `--log_output_level` and `--log_as_json` as our own settings of the log, where these are not set.
fn translate_log(flags: &mut BTreeMap<String, String>, environment: &dyn Strings, errors: &mut Vec<String>) {
    let unset = |key: &str| environment.get(key).is_none_or(|value| value.is_empty());
    if let Some(text) = flags.get(LOG_OUTPUT_LEVEL)
        && unset("RUST_LOG")
    {
        match filter(text) {
            Ok(filter) => drop(flags.insert("RUST_LOG".to_owned(), filter)),
            Err(error) => errors.push(error),
        }
    }
    if let Some(text) = flags.get(LOG_AS_JSON)
        && unset("LOG_FORMAT")
    {
        match go_bool(text) {
            Some(true) => drop(flags.insert("LOG_FORMAT".to_owned(), "json".to_owned())),
            Some(false) => {}
            None => errors.push(format!("--log_as_json={text:?} is not true or false")),
        }
    }
}

/// Istio's list of `scope:level` as a filter of ours. Its scopes are parts of its own programs: those of the CNI plugin and
/// of the installer have a counterpart, the others none.
fn filter(text: &str) -> Result<String, String> {
    let mut filter = Vec::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (scope, level) = entry.rsplit_once(':').unwrap_or(("default", entry));
        let level = match level.to_ascii_lowercase().as_str() {
            "none" => "off",
            "fatal" | "error" => "error",
            "warn" => "warn",
            "info" => "info",
            "debug" => "debug",
            _ => {
                return Err(format!(
                    "--log_output_level={text:?}: {level:?} is not none, fatal, error, warn, info or debug"
                ));
            }
        };
        match scope {
            "default" | "all" => filter.insert(0, level.to_owned()),
            "cni-plugin" => filter.push(format!("cni-plugin={level}")),
            "cni" | "cni-agent" | "ambient" | "install" => {
                filter.extend(["isthmus_node", "isthmus_install"].map(|scope| format!("{scope}={level}")));
            }
            _ => {}
        }
    }
    if filter.first().is_none_or(|first| first.contains('=')) {
        filter.insert(0, "info".to_owned());
    }
    Ok(filter.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<BTreeMap<String, String>, Vec<String>> {
        let env: BTreeMap<_, _> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let parsed = WithFlags::parse(args.iter().map(ToString::to_string), &env);
        parsed.map(|all| all.all().into_iter().collect()).map_err(|errors| errors.0)
    }

    #[test]
    fn the_charts_arguments_are_read() {
        let all = parse(&["--log_output_level=info,cni:debug", "--log_as_json"], &[]).unwrap();
        assert_eq!(all["RUST_LOG"], "info,isthmus_node=debug,isthmus_install=debug");
        assert_eq!(all["LOG_FORMAT"], "json");
        assert_eq!(all["LOG_OUTPUT_LEVEL"], "info,cni:debug");
    }

    #[test]
    fn a_flag_wins_over_its_variable_in_every_form() {
        let env = [("CNI_CONF_NAME", "a"), ("KUBECONFIG_MODE", "0600"), ("RUST_LOG", "warn")];
        let args = [
            "--cni-conf-name=b",
            "--ambient-enabled",
            "--mounted-cni-net-dir",
            "/x=y",
            "--skip-tls-verify=F",
            "--log_output_level=debug",
        ];
        let all = parse(&args, &env).unwrap();
        let wanted = [
            ("CNI_CONF_NAME", "b"),
            ("AMBIENT_ENABLED", "true"),
            ("MOUNTED_CNI_NET_DIR", "/x=y"),
            ("SKIP_TLS_VERIFY", "F"),
            ("KUBECONFIG_MODE", "0600"),
            ("RUST_LOG", "warn"),
        ];
        for (key, value) in wanted {
            assert_eq!(all[key], value, "{key}");
        }
    }

    #[test]
    fn every_argument_that_is_not_understood_is_named() {
        let errors = parse(&["--cni-konf-name=b", "x", "-v", "--", "--CNI-CONF-NAME=x", "--log-level"], &[])
            .unwrap_err();
        for (at, part) in
            ["--cni-konf-name", "\"x\"", "\"-v\"", "\"--\"", "--CNI-CONF-NAME", "--log-level needs a value"]
                .into_iter()
                .enumerate()
        {
            assert!(errors[at].contains(part), "{errors:?}");
        }
        assert!(parse(&["--log_output_level=default:loud"], &[]).unwrap_err()[0].contains("loud"));
        assert!(parse(&["--log_as_json=maybe"], &[]).unwrap_err()[0].contains("maybe"));
    }

    #[test]
    fn istios_scopes_become_a_filter() {
        for (text, want) in [
            ("warn", "warn"),
            ("default:info,cni:info", "info,isthmus_node=info,isthmus_install=info"),
            ("cni-plugin:none", "info,cni-plugin=off"),
            ("xds:debug,all:error", "error"),
            ("", "info"),
        ] {
            assert_eq!(filter(text).as_deref(), Ok(want), "{text}");
            isthmus_rt::log::parse(want).unwrap();
        }
    }
}
