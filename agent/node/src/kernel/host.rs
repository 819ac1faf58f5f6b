//! [`Kernel`] on this host: network namespaces, nftables, routes and probe sets through `isthmus_sys`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isthmus_model::PodUid;
use isthmus_sys::bypass;
use isthmus_sys::changes::Changes;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::Element;

use super::sandbox_records::SandboxRecords;
use super::{kubelet, prove};
use crate::capture::{CaptureError, Gate, NetnsChanges, Sandbox, Stray};
use crate::config::{Config, KubeletUid, ProbeAddresses};
use crate::kernel::{Kernel, KernelError, NetnsRefusal, ProbeTarget};
use crate::netns_lookup::{self, NetnsQuery};
use crate::pod::CaptureConfig;
use crate::rules::{self, HostRules, Loss, PodRules};

/// The kernel of this host.
pub struct HostKernel {
    netns_dir: PathBuf,
    proc_dir: PathBuf,
    netns: Netns,
    ipv6: bool,
    probes: ProbeAddresses,
    kubelet: KubeletUid,
    sandboxes: SandboxRecords,
}

impl HostKernel {
    /// Opens the host's network namespace.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(config: &Config) -> Result<Self, KernelError> {
        Ok(Self {
            netns_dir: config.netns_dir.clone(),
            proc_dir: config.proc_dir.clone(),
            netns: Netns::open(&config.host_netns).map_err(KernelError::failed("host network namespace"))?,
            ipv6: config.ipv6,
            probes: config.probes,
            kubelet: config.kubelet,
            sandboxes: SandboxRecords::new(&config.run_dir),
        })
    }

    /// Removes the host's rules, unless pods of the mesh are left: their probes need them. The number of those pods'
    /// addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_host(&self) -> Result<usize, KernelError> {
        let left = self.probe_targets()?.len();
        if left == 0 {
            rules::remove_host(&self.netns).map_err(KernelError::failed("host rules"))?;
        }
        Ok(left)
    }

    fn kubelet_uid(&self) -> u32 {
        match self.kubelet {
            KubeletUid::Fixed(uid) => uid,
            KubeletUid::Detect => kubelet::uid(&self.proc_dir).unwrap_or_else(|| {
                tracing::warn!(
                    proc = %self.proc_dir.display(),
                    "no kubelet process found; probes from user 0 only are let through, which is wrong if kubelet runs as \
                     another user or the host's /proc is not mounted",
                );
                0
            }),
        }
    }

    fn rules(&self, capture: &CaptureConfig, state: Gate) -> PodRules {
        PodRules {
            dns_capture: capture.dns,
            ingress_mode: !capture.inbound,
            ipv6: capture.ipv6,
            virtual_interfaces: capture.virtual_interfaces.clone(),
            probe_v4: self.probes.v4,
            probe_v6: self.probes.v6,
            closing: state == Gate::Closed,
            canary: true,
            probe_ports: Some(capture.probe_ports.clone()),
        }
    }

    /// Where a path of the host is in this process's files: the host's `/proc` and the runtime's folder are mounted
    /// somewhere. What the file is decides whether it is accepted, not where it is.
    fn visible(&self, path: &Path) -> std::io::Result<PathBuf> {
        let mounted = match path.strip_prefix("/proc") {
            Ok(rest) => self.proc_dir.join(rest),
            Err(_) => path.to_owned(),
        };
        let elsewhere = || Some(self.netns_dir.join(path.file_name()?)).filter(|other| other.exists());
        match mounted.metadata() {
            Ok(_) => Ok(mounted),
            Err(error) => elsewhere().ok_or(error),
        }
    }

    /// The pod that owns the entry of an address.
    fn owner(&self, ip: IpAddr) -> Result<Option<PodUid>, KernelError> {
        Ok(self.probe_targets()?.into_iter().find(|target| target.ip == ip).map(|target| target.uid))
    }
}

impl Kernel for HostKernel {
    fn open_netns(&self, path: &Path, uid: &PodUid) -> Result<Netns, KernelError> {
        let refused = |reason| KernelError::NetnsRefused { path: path.to_owned(), reason };
        let here = self.visible(path).map_err(|error| refused(NetnsRefusal::Path(error)))?;
        let netns = Netns::open(&here).map_err(|error| refused(NetnsRefusal::NotANetns(error)))?;
        if netns.id() == self.netns.id() {
            return Err(refused(NetnsRefusal::Host));
        }
        let processes = netns_lookup::processes(&self.proc_dir).unwrap_or_default();
        if let Some(other) = netns_lookup::another_pod_in(netns.id(), uid.as_str(), &processes) {
            return Err(refused(NetnsRefusal::AnotherPods(other.to_owned())));
        }
        if let Err(error) = self.sandboxes.write(uid, &here, &netns) {
            tracing::warn!(%error, "sandbox not recorded; after a restart the pod is found by its processes only");
        }
        Ok(netns)
    }

    fn forget_netns(&self, uid: &PodUid) {
        self.sandboxes.remove(uid);
    }

    fn find_netns(&self, queries: &[NetnsQuery]) -> Result<HashMap<PodUid, Netns>, KernelError> {
        let mut found = netns_lookup::find(&self.proc_dir, self.netns.id(), queries);
        let processes = netns_lookup::processes(&self.proc_dir).unwrap_or_default();
        for NetnsQuery { pod, ips, .. } in queries.iter().filter(|query| !query.ips.is_empty()) {
            let uid = &pod.uid;
            if !found.contains_key(uid)
                && let Some(netns) = self.sandboxes.open(uid)
                && netns.id() != self.netns.id()
                && netns_lookup::another_pod_in(netns.id(), uid.as_str(), &processes).is_none()
                && netns_lookup::owns_one_of(&netns, ips)
            {
                found.insert(uid.clone(), netns);
            }
        }
        Ok(found)
    }

    fn apply_pod(&self, netns: &Netns, capture: &CaptureConfig, state: Gate) -> Result<(), KernelError> {
        rules::apply_pod(netns, &self.rules(capture, state)).map_err(KernelError::failed("pod rules"))?;
        // After ours, so that the pod is captured all the time.
        match rules::remove_predecessors_pod(netns) {
            Ok(0) => {}
            Ok(tables) => {
                tracing::info!(netns = %netns.id(), tables, "iptables rules of istio-cni removed from a pod")
            }
            Err(error) => tracing::warn!(
                netns = %netns.id(), %error, "iptables rules of istio-cni not removed from a pod, they go when it leaves the mesh",
            ),
        }
        Ok(())
    }

    fn capture_running(&self, netns: &Netns, capture: &CaptureConfig) -> Result<usize, KernelError> {
        let rules = self.rules(capture, Gate::Closed);
        rules::capture_running(netns, &rules).map_err(KernelError::failed("rules of a running pod"))
    }

    fn prove(&self, sandbox: &Sandbox) -> Result<(), CaptureError> {
        prove::prove(sandbox, &self.netns)
    }

    fn compare(&self, sandbox: &Sandbox, state: Gate) -> Result<(), CaptureError> {
        let rules = self.rules(&sandbox.capture, state);
        match rules::compare_pod(&sandbox.netns, &rules).map_err(KernelError::failed("pod rules"))? {
            None => Ok(()),
            Some(Loss::Tables) => Err(CaptureError::Rules),
            Some(Loss::Routing) => Err(CaptureError::Routing),
        }
    }

    fn set_interfaces(&self, netns: &Netns, state: Gate) -> Result<(), KernelError> {
        let done = match state {
            Gate::Closed => bypass::close(netns),
            Gate::Open => bypass::open(netns),
        };
        done.map_err(KernelError::failed("interfaces"))
    }

    fn changes(&self, netns: &Netns) -> Result<Box<dyn NetnsChanges>, KernelError> {
        Ok(Box::new(Changes::subscribe(netns).map_err(KernelError::failed("notifications"))?))
    }

    fn strays(&self, pods: &[(PodUid, Netns)]) -> Result<Vec<Stray>, KernelError> {
        prove::strays(&self.proc_dir, &self.netns, pods)
    }

    fn release_pod(&self, netns: &Netns) -> Result<(), KernelError> {
        rules::release_pod(netns).map_err(KernelError::failed("pod rules"))?;
        self.set_interfaces(netns, Gate::Open)
    }

    fn carries(&self, netns: &Netns) -> Result<bool, KernelError> {
        rules::carries(netns).map_err(KernelError::failed("connections of the agent"))
    }

    fn remove_pod(&self, netns: &Netns) -> Result<(), KernelError> {
        rules::remove_pod(netns).map_err(KernelError::failed("pod rules"))?;
        // With these left, its traffic would go to an agent that does not serve it any more.
        rules::remove_predecessors_pod(netns).map_err(KernelError::failed("iptables rules of istio-cni"))?;
        self.set_interfaces(netns, Gate::Open)
    }

    fn apply_host(&self) -> Result<(), KernelError> {
        let rules = HostRules {
            kubelet_uid: self.kubelet_uid(),
            ipv6: self.ipv6,
            probe_v4: self.probes.v4,
            probe_v6: self.probes.v6,
            members: Vec::new(),
        };
        rules::apply_host(&self.netns, &rules).map_err(KernelError::failed("host rules"))?;
        rules::apply_host_guard(&self.netns, &rules).map_err(KernelError::failed("host rules"))?;
        match rules::remove_predecessors_host(&self.netns) {
            Ok(0) => {}
            Ok(_) => tracing::info!("iptables rules and sets of istio-cni removed from the host"),
            Err(error) => {
                tracing::warn!(%error, "iptables rules or sets of istio-cni not removed from the host")
            }
        }
        if let Err(error) = rules::apply_bridge_guard(&self.netns, &rules) {
            tracing::warn!(%error, "pods on one bridge can pose as the kubelet to each other, on ports with probes");
        }
        Ok(())
    }

    fn probe_targets(&self) -> Result<Vec<ProbeTarget>, KernelError> {
        let entries = rules::host_probes(&self.netns).map_err(KernelError::failed("probe addresses"))?;
        let target =
            |entry: Element| ProbeTarget { ip: entry.address, uid: entry.comment.unwrap_or_default().into() };
        Ok(entries.into_iter().map(target).collect())
    }

    fn add_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError> {
        if target.ip.is_ipv6() && !self.ipv6 {
            return Ok(());
        }
        rules::add_host_probe(&self.netns, target.ip, target.uid.as_str())
            .map_err(KernelError::failed("probe addresses"))
    }

    fn remove_probe_target(&self, target: &ProbeTarget) -> Result<(), KernelError> {
        if self.owner(target.ip)?.as_ref() != Some(&target.uid) {
            return Ok(());
        }
        rules::remove_host_probe(&self.netns, target.ip).map_err(KernelError::failed("probe addresses"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(netns_dir: &Path) -> HostKernel {
        HostKernel {
            netns_dir: netns_dir.to_owned(),
            proc_dir: "/proc".into(),
            netns: Netns::current().unwrap(),
            ipv6: true,
            probes: ProbeAddresses::default(),
            kubelet: KubeletUid::Fixed(7),
            sandboxes: SandboxRecords::new(netns_dir),
        }
    }

    #[test]
    fn a_path_is_judged_by_what_the_file_is() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path());
        let here = dir.path().join("host");
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", &here).unwrap();
        let cases = [
            ("/etc/hostname".into(), "not a namespace"),
            ("/proc/self/ns/mnt".into(), "another kind"),
            (dir.path().join("gone"), "No such file"),
            (dir.path().join("file"), "not a namespace"),
            (here, "the host's"),
            ("/proc/self/ns/net".into(), "the host's"),
            // The runtime's folder is mounted elsewhere.
            ("/var/run/netns/nowhere/file".into(), "not a namespace"),
        ];
        for (path, reason) in cases {
            let error = host.open_netns(&path, &"u".into()).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("is refused"), "{error}");
        }
    }

    #[test]
    fn a_configured_kubelet_user_is_not_detected() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(host(dir.path()).kubelet_uid(), 7);
    }
}
