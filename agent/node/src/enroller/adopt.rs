//! Taking over the pods that an earlier run of the node role has enrolled.

use std::collections::HashMap;

use isthmus_sys::netns::Netns;

use crate::capture::{CaptureError, Gate, Sandbox};
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
            let _exclusive = self.exclusive(&pod.pod.uid).await;
            if let Some(netns) = netns.clone().filter(|_| reapply_rules) {
                let sandbox = self.sandbox(pod, &netns, &pod.ips);
                if let Err(error) = self.write_rules(&sandbox, Gate::Open).await {
                    tracing::warn!(%pod, %error, "rules of an enrolled pod not rewritten, will be retried");
                    state = EnrolmentState::Partial;
                }
            }
            self.data_plane.adopt(&pod.pod, netns.clone());
            self.record(pod, state, netns.clone(), &pod.ips);
            if let Some(netns) = netns.filter(|_| state == EnrolmentState::Enrolled) {
                self.prove_adopted(pod, &netns).await;
            }
        }
        self.adopt_probes(pods).await;
    }

    /// A pod that an earlier run has enrolled is one only if it is captured now. Where it is not, it is closed and enrolled
    /// again.
    async fn prove_adopted(&self, pod: &Pod, netns: &Netns) {
        let sandbox = self.sandbox(pod, netns, &pod.ips);
        let compared = self.ask(&sandbox, |kernel, sandbox| kernel.compare(sandbox, Gate::Open)).await;
        let proved = match compared {
            Ok(()) => self.ask(&sandbox, |kernel, sandbox| kernel.prove(sandbox)).await,
            // Rules of another version, or rules that were lost: replaced at once, closed until they are proved.
            Err(CaptureError::Rules | CaptureError::Routing) => self.replace_rules(pod, &sandbox).await,
            Err(error) => Err(error),
        };
        match proved {
            Ok(()) => self.proved(&pod.pod.uid, Gate::Open),
            Err(error) => {
                tracing::warn!(%pod, %error, "enrolled pod is not captured, closing it");
                self.shut(&sandbox, &error).await;
                if let Some(enrolment) = self.lock().get_mut(&pod.pod.uid) {
                    enrolment.state = EnrolmentState::Partial;
                }
            }
        }
    }

    async fn replace_rules(&self, pod: &Pod, sandbox: &Sandbox) -> Result<(), CaptureError> {
        tracing::info!(%pod, "packet rules of an enrolled pod are not this version's, replacing them");
        self.write_rules(sandbox, Gate::Closed).await?;
        self.ask(sandbox, |kernel, sandbox| kernel.prove(sandbox)).await?;
        Ok(self.write_rules(sandbox, Gate::Open).await?)
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
