//! Connections that are open when a running pod enters or leaves the mesh: they go on as they began.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};

use isthmus_model::PodUid;
use isthmus_sys::netns::Netns;

use crate::enroller::Enroller;
use crate::kernel::KernelError;
use crate::plan::EnrolmentState;
use crate::pod::Pod;

impl Enroller {
    /// Begins the enrolment of a pod that runs already, so that the connections it has are not touched. Only the first
    /// attempt does: what a pod opens later has no such right.
    pub(super) async fn leave_established_alone(&self, pod: &Pod, netns: &Netns) {
        if self.state(&pod.pod.uid).0 != EnrolmentState::NotEnrolled {
            return;
        }
        // Before the first rule is written, because a call that fails may have written some of them.
        self.record(pod, EnrolmentState::Partial, Some(netns.clone()), &pod.ips);
        let (inside, capture) = (netns.clone(), self.capture(pod));
        match self.blocking(move |kernel| kernel.capture_running(&inside, &capture)).await {
            Ok(0) => {}
            Ok(connections) => {
                tracing::info!(connections, "established connections go on outside of the mesh")
            }
            Err(error) => tracing::warn!(%error, "established connections of a running pod may be reset"),
        }
    }

    /// Removes the rules of a pod that redirect nothing any more, now or when the agent's last connection has ended: within
    /// the agent's drain deadline.
    pub(super) async fn remove_when_unused(&self, uid: &PodUid, netns: Netns) -> Result<(), KernelError> {
        if self.remove_unused(&netns).await? {
            self.released().remove(uid);
        } else {
            self.released().insert(uid.clone(), netns);
        }
        Ok(())
    }

    /// Removes the rules of pods that have left the mesh and have no connection left that the agent carries.
    pub(crate) async fn sweep_released(&self) {
        let released: Vec<(PodUid, Netns)> =
            self.released().iter().map(|(uid, netns)| (uid.clone(), netns.clone())).collect();
        for (uid, netns) in released {
            let _exclusive = self.exclusive(&uid).await;
            let listed = self.released().contains_key(&uid);
            if listed && let Err(error) = self.remove_when_unused(&uid, netns).await {
                tracing::debug!(%uid, %error, "rules of a pod that has left the mesh not removed, will be retried");
            }
        }
    }

    async fn remove_unused(&self, netns: &Netns) -> Result<bool, KernelError> {
        let netns = netns.clone();
        let remove = move |kernel: &dyn crate::kernel::Kernel| {
            let unused = !kernel.carries(&netns)?;
            if unused {
                kernel.remove_pod(&netns)?;
            }
            Ok(unused)
        };
        self.blocking(remove).await
    }

    pub(super) fn released(&self) -> MutexGuard<'_, HashMap<PodUid, Netns>> {
        // Every change is one insertion or removal, so a panic leaves nothing half done.
        self.released.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
