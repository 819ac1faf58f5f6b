//! The CNI commands. ADD decides whether the pod belongs to the mesh and, if it does, fails unless the node role enrols
//! it, so that the kubelet tries again and no pod of the mesh starts without redirection. DEL, CHECK and GC do nothing:
//! a pod leaves the mesh when the node role's watch sees it go.

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
/// Attempts with `enable_ambient_detection_retry`.
const ATTEMPTS: u32 = 30;
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

    /// Why the pod stays out of the mesh, or `None` when it belongs to it.
    fn reason_to_skip(&self, pod: &PodName) -> Result<Option<String>, ApiError> {
        let Settings { rules, node_namespace, enabled, .. } = &self.settings;
        // Decided without the API server: these pods must start while it or the node role is down.
        if is_node_pod(&pod.namespace, &pod.name, node_namespace) {
            return Ok(Some("it is a pod of the node agent itself".to_owned()));
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
        let retries = if self.settings.retry { ATTEMPTS - 1 } else { 0 };
        for _ in 0..retries {
            let Err(error) = &result else { break };
            let fields = [("pod", pod.to_string()), ("error", error.to_string())];
            self.log.line(
                Level::Warn,
                "cannot read the pod from the API server, retrying in 1s",
                &[("pod", &fields[0].1), ("error", &fields[1].1)],
            );
            std::thread::sleep(RETRY_AFTER);
            result = attempt();
        }
        result
    }

    /// The error for the runtime, also logged: the kubelet shows it in the pod's events and tries again.
    fn not_started(&self, pod: &PodName, details: String) -> Error {
        self.log.line(Level::Error, &details, &[("pod", &pod.to_string())]);
        Error::TryAgainLater(details)
    }

    /// ADD of one sandbox: returns when its pod is enrolled, or stays out of the mesh.
    ///
    /// # Errors
    /// When the pod must not start.
    pub(crate) fn add_pod(&self, netns: &Path, args: &str, ips: Vec<IpConfig>) -> Result<(), Error> {
        refuse_own_namespace(netns)?;
        let Some(pod) = PodName::parse(args)? else {
            let reason = [("reason", "CNI_ARGS names no Kubernetes pod")];
            self.log.line(Level::Debug, "sandbox left out of the mesh", &reason);
            return Ok(());
        };
        match self.reason_to_skip(&pod) {
            Err(error) => {
                let details = format!(
                    "pod {pod} is not started, since it is not known whether it belongs to the mesh: {error}"
                );
                return Err(self.not_started(&pod, details));
            }
            Ok(Some(reason)) => {
                self.log.line(
                    Level::Debug,
                    "pod left out of the mesh",
                    &[("pod", &pod.to_string()), ("reason", &reason)],
                );
                return Ok(());
            }
            Ok(None) => {}
        }
        let event = AddEvent {
            netns: netns.display().to_string(),
            pod_name: pod.name.clone(),
            pod_namespace: pod.namespace.clone(),
            ips,
        };
        event::post(&self.settings.run_dir, &event).map_err(|error| {
            let details = format!("pod {pod} cannot join the mesh and is not started: {error}");
            self.not_started(&pod, details)
        })?;
        self.log.line(Level::Info, "pod enrolled in the mesh", &[("pod", &pod.to_string())]);
        Ok(())
    }
}

impl Cni for IsthmusCni {
    fn add(&self, args: Args) -> Result<CNIResult, Error> {
        let netns = args.netns().map_or_else(|| Path::new(""), |path| path.as_path());
        let result = args.config().prev_result.clone().unwrap_or_default();
        self.add_pod(netns, args.args().unwrap_or_default(), result.ips.iter().map(address).collect())?;
        Ok(result)
    }

    fn del(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    /// Always success. A failure would make the whole node not ready while the node role is away, and the node role's own
    /// pod could not start any more.
    fn status(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }

    fn gc(&self, _: Args) -> Result<(), Error> {
        Ok(())
    }
}

/// One address of the earlier plugins' result, in the event's shape.
fn address(ip: &rscni_plugin::types::IpConfig) -> IpConfig {
    let gateway = ip.gateway.map(|gateway| gateway.to_string()).unwrap_or_default();
    event_address(ip.address, ip.interface.map(i64::from), gateway)
}

/// An address in the event's shape.
pub(crate) fn event_address(address: ipnet::IpNet, interface: Option<i64>, gateway: String) -> IpConfig {
    let mask = match address {
        ipnet::IpNet::V4(net) => net.netmask().octets().to_vec(),
        ipnet::IpNet::V6(net) => net.netmask().octets().to_vec(),
    };
    let mask = base64::engine::general_purpose::STANDARD.encode(mask);
    IpConfig { interface, address: IpNet { ip: address.addr(), mask }, gateway }
}

/// Refuses the plugin's own network namespace: rules in it would redirect the traffic of the whole node.
fn refuse_own_namespace(netns: &Path) -> Result<(), Error> {
    let (Ok(theirs), Ok(ours)) = (std::fs::metadata(netns), std::fs::metadata("/proc/self/ns/net")) else {
        // The node role opens the path and reports what is wrong with it.
        return Ok(());
    };
    let overridden = std::env::var_os("CNI_NETNS_OVERRIDE").is_some_and(|value| !value.is_empty());
    if !overridden && (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()) {
        let details = format!(
            "CNI_NETNS={} is the node's own network namespace, which must not be redirected",
            netns.display()
        );
        return Err(Error::InvalidNetNS(details));
    }
    Ok(())
}
