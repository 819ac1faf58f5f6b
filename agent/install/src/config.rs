//! Settings of the installer as plain, validated values. It must not know where they come from: the composition root
//! reads the environment.

use std::path::PathBuf;

use crate::conflist::Layout;
use crate::entry::Entry;

/// Settings of the installer.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The plugin's binary in this image.
    pub binary: PathBuf,
    /// Where the host's folder of CNI binaries is mounted.
    pub bin_dir: PathBuf,
    /// Where the host's folder of network configurations is mounted.
    pub net_dir: PathBuf,
    /// Folder of the kubeconfig.
    pub run_dir: PathBuf,
    /// Where the service account of this pod is mounted.
    pub service_account_dir: PathBuf,
    /// Where the entry goes.
    pub layout: Layout,
    /// Mode of a network configuration that did not exist.
    pub conflist_mode: u32,
    /// Mode of the kubeconfig.
    pub kubeconfig_mode: u32,
    /// The entry.
    pub entry: Entry,
    /// Base URL of the API server, as the host reaches it.
    pub server: String,
    /// PEM file of the API server's roots; `None`: its certificate is not verified.
    pub roots: Option<PathBuf>,
    /// The account that the plugin shows; `None`: that of this pod.
    pub plugin_account: Option<String>,
    /// Namespace of this pod.
    pub namespace: String,
    /// The DaemonSet that this pod is of.
    pub daemon_set: String,
    /// This node.
    pub node: String,
    /// Whether everything is removed at every end, also when a successor follows.
    pub always_remove: bool,
}
