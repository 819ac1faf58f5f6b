//! Taking over the pods that an earlier run of the node role has enrolled.

use std::collections::HashMap;

use crate::enroller::Enroller;
use crate::kernel::KernelError;
use crate::netns_lookup::NetnsQuery;
use crate::plan::EnrolmentState;
use crate::pod::{Pod, Redirection};

impl Enroller {
    /// Adopts enrolled pods; with `reapply_rules` their rules are written again. Nothing here fails the start: a pod
    /// whose adoption fails is [`Partial`](EnrolmentState::Partial) and retried like any other.
    pub async fn adopt(&self, pods: &[Pod], reapply_rules: bool) {
        let queries = pods.iter().map(NetnsQuery::of).collect::<Vec<_>>();
        let found = self.blocking(move |kernel| kernel.find_netns(&queries)).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "network namespaces of running pods not found, enrolling the pods again");
            HashMap::new()
        });
        for pod in pods {
            let netns = found.get(&pod.pod.uid).cloned();
            let mut state = match (pod.redirection(), &netns) {
                (Some(Redirection::Enabled), Some(_)) => EnrolmentState::Enrolled,
                _ => EnrolmentState::Partial,
            };
            if let Some(netns) = netns.clone().filter(|_| reapply_rules) {
                let capture = self.capture(pod);
                if let Err(error) = self.blocking(move |kernel| kernel.apply_pod(&netns, &capture)).await {
                    tracing::warn!(%pod, %error, "rules of an enrolled pod not rewritten, will be retried");
                    state = EnrolmentState::Partial;
                }
            }
            self.data_plane.adopt(&pod.pod, netns.clone());
            self.record(pod, state, netns, &pod.ips);
        }
        self.adopt_probes(pods).await;
    }

    /// Adds the entries of every adopted pod, and removes those of other pods only if the addresses of every adopted
    /// pod are known: an entry may belong to a pod whose address is not. A pod whose entries cannot be added is retried
    /// by itself.
    async fn adopt_probes(&self, pods: &[Pod]) {
        for pod in pods {
            if let Err(error) = self.add_probes(&pod.pod.uid, &pod.ips).await {
                tracing::warn!(%pod, %error, "probe addresses of an enrolled pod not written, will be retried");
                if let Some(enrolment) = self.lock().get_mut(&pod.pod.uid) {
                    enrolment.state = EnrolmentState::Partial;
                }
            }
        }
        if pods.iter().any(|pod| pod.ips.is_empty()) {
            return;
        }
        if let Err(error) = self.remove_stale_probes(pods).await {
            tracing::warn!(%error, "probe addresses of pods that are gone not removed");
        }
    }

    async fn remove_stale_probes(&self, pods: &[Pod]) -> Result<(), KernelError> {
        for target in self.blocking(|kernel| kernel.probe_targets()).await? {
            let known = pods.iter().any(|pod| pod.pod.uid == target.uid && pod.ips.contains(&target.ip));
            if !known {
                self.blocking(move |kernel| kernel.remove_probe_target(&target)).await?;
            }
        }
        Ok(())
    }
}
