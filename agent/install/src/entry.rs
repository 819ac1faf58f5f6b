//! Our entry in a network configuration: what the plugin is told on its standard input.

use isthmus_proto::enroll::Selector;
use serde_json::{Map, Value, json};

/// The `type` of our entry, which is also the name of the binary.
pub const PLUGIN: &str = "istio-cni";

/// The plugin's settings, under istio-cni's keys.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Further keys (`CNI_NETWORK_CONFIG`), below the ones of this type.
    pub template: Map<String, Value>,
    /// `plugin_log_level`
    pub log_level: String,
    /// `cni_agent_run_dir`: a path of the host.
    pub run_dir: String,
    /// `ambient_enabled`
    pub ambient_enabled: bool,
    /// `enablement_selectors`
    pub selectors: Vec<Selector>,
    /// `exclude_namespaces`
    pub exclude_namespaces: Vec<String>,
    /// `pod_namespace`: where this role runs.
    pub pod_namespace: String,
    /// `native_nftables`. Ours uses nftables in any case.
    pub native_nftables: bool,
    /// `enable_ambient_detection_retry`
    pub retry: bool,
}

impl Entry {
    /// The entry.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let mut object = self.template.clone();
        let ours = [
            ("name", json!(PLUGIN)),
            ("type", json!(PLUGIN)),
            ("plugin_log_level", json!(self.log_level)),
            ("cni_agent_run_dir", json!(self.run_dir)),
            ("ambient_enabled", json!(self.ambient_enabled)),
            ("enablement_selectors", json!(self.selectors)),
            ("exclude_namespaces", json!(self.exclude_namespaces)),
            ("pod_namespace", json!(self.pod_namespace)),
            ("native_nftables", json!(self.native_nftables)),
            ("enable_ambient_detection_retry", json!(self.retry)),
        ];
        object.extend(ours.map(|(key, value)| (key.to_owned(), value)));
        // The list has the version of all its plugins.
        object.shift_remove("cniVersion");
        object
    }
}
