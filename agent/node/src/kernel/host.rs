//! The real kernel: namespaces, nftables, routes and sets of this host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isthmus_model::name::PodUid;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::Element;

use super::{Kernel, KernelError, Probe, kubelet};
use crate::config::{Config, KubeletUid, ProbeAddresses};
use crate::netns_find::{self, Wanted};
use crate::pod::Capture;
use crate::rules::{self, HostRules, PodRules};

/// The kernel of this host.
pub struct Host {
    netns_dir: PathBuf,
    proc_dir: PathBuf,
    netns: Netns,
    ipv6: bool,
    probes: ProbeAddresses,
    kubelet: KubeletUid,
}

impl Host {
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
                tracing::warn!("no kubelet among the processes; taking it to run as user 0");
                0
            }),
        }
    }

    /// Whose entry an address has.
    fn owner(&self, ip: IpAddr) -> Result<Option<PodUid>, KernelError> {
        Ok(self.probes()?.into_iter().find(|probe| probe.ip == ip).map(|probe| probe.uid))
    }
}

impl Kernel for Host {
    fn open(&self, path: &Path) -> Result<Netns, KernelError> {
        let refused = |reason: &dyn std::fmt::Display| KernelError::Refused {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        // Links are followed before the folder is compared, so none can lead out of it.
        let folder = self.netns_dir.canonicalize().map_err(|error| {
            refused(&format_args!("the runtime's folder {}: {error}", self.netns_dir.display()))
        })?;
        let real = path.canonicalize().map_err(|error| refused(&error))?;
        if !real.starts_with(&folder) {
            return Err(refused(&format_args!("it is not in {}", self.netns_dir.display())));
        }
        let netns = Netns::open(&real).map_err(|error| refused(&error))?;
        if netns.id() == self.netns.id() {
            return Err(refused(&"it is the host's"));
        }
        Ok(netns)
    }

    fn find(&self, wanted: &[Wanted]) -> Result<HashMap<PodUid, Netns>, KernelError> {
        Ok(netns_find::find(&self.proc_dir, &self.netns_dir, self.netns.id(), wanted))
    }

    fn apply_pod(&self, netns: &Netns, capture: &Capture) -> Result<(), KernelError> {
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

    fn probes(&self) -> Result<Vec<Probe>, KernelError> {
        let entries = rules::host_probes(&self.netns).map_err(KernelError::failed("probe addresses"))?;
        let probe =
            |entry: Element| Probe { ip: entry.address, uid: entry.comment.unwrap_or_default().into() };
        Ok(entries.into_iter().map(probe).collect())
    }

    fn add_probe(&self, probe: &Probe) -> Result<(), KernelError> {
        if probe.ip.is_ipv6() && !self.ipv6 {
            return Ok(());
        }
        rules::add_host_probe(&self.netns, probe.ip, probe.uid.as_str())
            .map_err(KernelError::failed("probe addresses"))
    }

    fn remove_probe(&self, probe: &Probe) -> Result<(), KernelError> {
        if self.owner(probe.ip)?.as_ref() != Some(&probe.uid) {
            return Ok(());
        }
        rules::remove_host_probe(&self.netns, probe.ip).map_err(KernelError::failed("probe addresses"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(netns_dir: &Path) -> Host {
        Host {
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
            (dir.path().join("file"), "no namespace"),
            // A link out of the folder is refused for that, even to a real namespace.
            (ours, "refused"),
        ];
        for (path, reason) in cases {
            let error = host.open(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("is refused"), "{error}");
        }
    }

    #[test]
    fn a_fixed_user_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(host(dir.path()).kubelet_uid(), 7);
    }
}
