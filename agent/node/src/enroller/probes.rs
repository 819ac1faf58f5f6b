//! The host's probe sets follow the addresses of enrolled pods.

use std::net::IpAddr;

use isthmus_model::PodUid;

use super::Enroller;
use super::error::EnrolError;
use crate::kernel::{KernelError, ProbeTarget};
use crate::pod::Pod;

impl Enroller {
    /// Updates the probe sets to a pod's changed addresses.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn sync_probes(&self, pod: &Pod) -> Result<(), EnrolError> {
        let uid = &pod.pod.uid;
        let (_, old) = self.state(uid);
        self.add_probes(uid, &pod.ips).await?;
        self.remove_probes(uid, old.into_iter().filter(|ip| !pod.ips.contains(ip)).collect()).await?;
        if let Some(enrolment) = self.lock().get_mut(uid) {
            enrolment.ips.clone_from(&pod.ips);
        }
        Ok(())
    }

    pub(super) async fn add_probes(&self, uid: &PodUid, ips: &[IpAddr]) -> Result<(), KernelError> {
        let targets: Vec<_> = ips.iter().map(|ip| ProbeTarget { ip: *ip, uid: uid.clone() }).collect();
        self.blocking(move |kernel| targets.iter().try_for_each(|target| kernel.add_probe_target(target)))
            .await
    }

    pub(super) async fn remove_probes(&self, uid: &PodUid, ips: Vec<IpAddr>) -> Result<(), KernelError> {
        let targets: Vec<_> = ips.into_iter().map(|ip| ProbeTarget { ip, uid: uid.clone() }).collect();
        self.blocking(move |kernel| targets.iter().try_for_each(|target| kernel.remove_probe_target(target)))
            .await
    }
}
