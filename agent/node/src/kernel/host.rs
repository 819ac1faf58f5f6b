//! [`Kernel`] on this host: network namespaces, nftables, routes and probe sets through `isthmus_sys`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isthmus_model::PodUid;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::Element;

use super::kubelet;
use crate::config::{Config, KubeletUid, ProbeAddresses};
use crate::kernel::{Kernel, KernelError, NetnsRefusal, ProbeTarget};
use crate::netns_lookup::{self, NetnsQuery};
use crate::pod::CaptureConfig;
use crate::rules::{self, HostRules, PodRules};

/// The kernel of this host.
pub struct HostKernel {
    netns_dir: PathBuf,
    proc_dir: PathBuf,
    netns: Netns,
    ipv6: bool,
    probes: ProbeAddresses,
    kubelet: KubeletUid,
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
        })
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

    /// The pod that owns the entry of an address.
    fn owner(&self, ip: IpAddr) -> Result<Option<PodUid>, KernelError> {
        Ok(self.probe_targets()?.into_iter().find(|target| target.ip == ip).map(|target| target.uid))
    }
}

impl Kernel for HostKernel {
    fn open_netns(&self, path: &Path) -> Result<Netns, KernelError> {
        let refused = |reason| KernelError::NetnsRefused { path: path.to_owned(), reason };
        let folder = || self.netns_dir.clone();
        // Links are followed before the folder is compared, so that none can lead out of it: the path comes from a
        // request, and the node role would write rules into whatever namespace it opens.
        let real_folder = folder()
            .canonicalize()
            .map_err(|cause| refused(NetnsRefusal::Folder { folder: folder(), cause }))?;
        let real = path.canonicalize().map_err(|error| refused(NetnsRefusal::Path(error)))?;
        if !real.starts_with(&real_folder) {
            return Err(refused(NetnsRefusal::Outside(folder())));
        }
        let netns = Netns::open(&real).map_err(|error| refused(NetnsRefusal::NotANetns(error)))?;
        if netns.id() == self.netns.id() {
            return Err(refused(NetnsRefusal::Host));
        }
        Ok(netns)
    }

    fn find_netns(&self, queries: &[NetnsQuery]) -> Result<HashMap<PodUid, Netns>, KernelError> {
        Ok(netns_lookup::find(&self.proc_dir, &self.netns_dir, self.netns.id(), queries))
    }

    fn apply_pod(&self, netns: &Netns, capture: &CaptureConfig) -> Result<(), KernelError> {
        let rules = PodRules {
            dns_capture: capture.dns,
            ingress_mode: !capture.inbound,
            ipv6: capture.ipv6,
            virtual_interfaces: capture.virtual_interfaces.clone(),
            probe_v4: self.probes.v4,
            probe_v6: self.probes.v6,
            closing: false,
        };
        rules::apply_pod(netns, &rules).map_err(KernelError::failed("pod rules"))
    }

    fn remove_pod(&self, netns: &Netns) -> Result<(), KernelError> {
        rules::remove_pod(netns).map_err(KernelError::failed("pod rules"))
    }

    fn apply_host(&self) -> Result<(), KernelError> {
        let rules = HostRules {
            kubelet_uid: self.kubelet_uid(),
            ipv6: self.ipv6,
            probe_v4: self.probes.v4,
            probe_v6: self.probes.v6,
            members: Vec::new(),
        };
        rules::apply_host(&self.netns, &rules).map_err(KernelError::failed("host rules"))
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
        }
    }

    #[test]
    fn only_namespaces_in_the_runtimes_folder_are_opened() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let host = host(dir.path());
        let ours = dir.path().join("host");
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::write(elsewhere.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("file"), dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/proc/self/ns/net", &ours).unwrap();
        let cases = [
            (elsewhere.path().join("file"), "not in"),
            (dir.path().join("../".repeat(32)).join("etc/hostname"), "not in"),
            (dir.path().join("out"), "not in"),
            (dir.path().join("gone"), "No such file"),
            (dir.path().join("file"), "not a namespace"),
            // A link out of the folder is refused for that, even to a real namespace.
            (ours, "refused"),
        ];
        for (path, reason) in cases {
            let error = host.open_netns(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("is refused"), "{error}");
        }
    }

    #[test]
    fn a_configured_kubelet_user_is_not_detected() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(host(dir.path()).kubelet_uid(), 7);
    }
}
