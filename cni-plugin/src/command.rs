//! The CNI commands. ADD decides whether the pod belongs to the mesh and, if it does, fails unless the pod is captured;
//! the others do nothing, because pods leave the mesh when the API server says so.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use isthmus_proto::cni::{AddEvent, IpConfig, IpNet};
use isthmus_proto::enroll::{Decision, Labels, PodFacts, is_node_pod};
use rscni_plugin::cni::Cni;
use rscni_plugin::error::Error;
use rscni_plugin::types::{Args, CNIResult};

use crate::api::{Api, ApiError, Pod};
use crate::event;
use crate::log::{Level, Log};
use crate::netconf::{PodName, Settings};

const KUBECONFIG: &str = "istio-cni-kubeconfig";
const RETRIES: u32 = 30;
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The plugin under one configuration.
pub(crate) struct IsthmusCni {
    settings: Settings,
    log: Log,
}

impl IsthmusCni {
    /// A plugin that acts on `settings`.
    pub(crate) fn new(settings: Settings, log: Log) -> Self {
        Self { settings, log }
    }

    /// Why the pod is left alone, or `None` when it belongs to the mesh.
    fn left_alone(&self, pod: &PodName) -> Result<Option<String>, ApiError> {
        let Settings { rules, node_namespace, enabled, .. } = &self.settings;
        // What is decided here asks nobody: these pods must start while the API server or the node role is away.
        if is_node_pod(&pod.namespace, &pod.name, node_namespace) {
            return Ok(Some("it is the node role's own pod".to_owned()));
        }
        if rules.excludes(&pod.namespace) {
            return Ok(Some(isthmus_proto::enroll::Reason::ExcludedNamespace.to_string()));
        }
        if !enabled {
            return Ok(Some("ambient_enabled is false".to_owned()));
        }
        let (found, namespace_labels) = self.read(pod)?;
        let none = Labels::new();
        let facts = PodFacts {
            namespace: &pod.namespace,
            labels: found.metadata.labels.as_ref().unwrap_or(&none),
            annotations: found.metadata.annotations.as_ref().unwrap_or(&none),
            host_network: found.spec.host_network,
        };
        Ok(match rules.decide(facts, &namespace_labels) {
            Decision::Enrol => None,
            Decision::Skip(reason) => Some(reason.to_string()),
        })
    }

    fn read(&self, pod: &PodName) -> Result<(Pod, Labels), ApiError> {
        let attempt =
            || Api::load(&self.settings.run_dir.join(KUBECONFIG)).and_then(|api| api.pod_and_namespace(pod));
        let mut result = attempt();
        let retries = if self.settings.retry { RETRIES - 1 } else { 0 };
        for _ in 0..retries {
            let Err(error) = &result else { break };
            self.log.line(Level::Warn, "will ask again", &[("error", &error.to_string())]);
            std::thread::sleep(RETRY_AFTER);
            result = attempt();
        }
        result
    }

    /// One line for the log and the same words for the runtime.
    fn failed(&self, pod: &PodName, reason: &str) -> Error {
        let details = format!("pod {pod} is not captured: {reason}");
        self.log.line(Level::Error, &details, &[("pod", &pod.to_string())]);
        Error::TryAgainLater(details)
    }
}

impl Cni for IsthmusCni {
    fn add(&self, args: Args) -> Result<CNIResult, Error> {
        let netns = args.netns().map_or_else(|| Path::new(""), |path| path.as_path());
        not_our_own(netns)?;
        let result = args.config().prev_result.clone().unwrap_or_default();
        let Some(pod) = PodName::parse(args.args().unwrap_or_default())? else {
            self.log.line(Level::Debug, "passed through", &[("reason", "no Kubernetes pod")]);
            return Ok(result);
        };
        match self.left_alone(&pod) {
            Err(error) => return Err(self.failed(&pod, &error.to_string())),
            Ok(Some(reason)) => {
                self.log.line(
                    Level::Debug,
                    "passed through",
                    &[("pod", &pod.to_string()), ("reason", &reason)],
                );
                return Ok(result);
            }
            Ok(None) => {}
        }
        let event = AddEvent {
            netns: netns.display().to_string(),
            pod_name: pod.name.clone(),
            pod_namespace: pod.namespace.clone(),
            ips: result.ips.iter().map(address).collect(),
        };
        event::post(&self.settings.run_dir, &event).map_err(|error| self.failed(&pod, &error.to_string()))?;
        self.log.line(Level::Info, "captured", &[("pod", &pod.to_string())]);
        Ok(result)
    }

    fn del(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    /// Whether ADD of a pod of the mesh could succeed: somebody must listen on the event socket.
    fn status(&self, _: Args) -> Result<(), Error> {
        if !self.settings.enabled {
            return Ok(());
        }
        event::probe(&self.settings.run_dir).map_err(|error| Error::PluginNotAvailable(error.to_string()))
    }

    fn gc(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }
}

/// One address of the earlier plugins' result, in the event's shape.
fn address(ip: &rscni_plugin::types::IpConfig) -> IpConfig {
    let mask = match ip.address {
        ipnet::IpNet::V4(net) => net.netmask().octets().to_vec(),
        ipnet::IpNet::V6(net) => net.netmask().octets().to_vec(),
    };
    IpConfig {
        interface: ip.interface.map(i64::from),
        address: IpNet {
            ip: ip.address.addr(),
            mask: base64::engine::general_purpose::STANDARD.encode(mask),
        },
        gateway: ip.gateway.map(|gateway| gateway.to_string()).unwrap_or_default(),
    }
}

/// ADD on the namespace the plugin itself runs in would capture the whole node.
fn not_our_own(netns: &Path) -> Result<(), Error> {
    let (Ok(theirs), Ok(ours)) = (std::fs::metadata(netns), std::fs::metadata("/proc/self/ns/net")) else {
        // A path that cannot be looked at is refused by whoever must open it.
        return Ok(());
    };
    let overridden = std::env::var_os("CNI_NETNS_OVERRIDE").is_some_and(|value| !value.is_empty());
    if !overridden && (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        let details = format!("CNI_NETNS={} is the plugin's own network namespace", netns.display());
        return Err(Error::InvalidNetNS(details));
    }
    Ok(())
}
