//! Re-checks a pod's open inbound connections against the policies in force, whenever those change. Owns when; the table
//! of connections owns how, and the state whether.

use crate::tracker::Verdict;
use std::sync::Arc;

use isthmus_model::Facts;
use isthmus_rt::task::Spawnable;
use isthmus_state::{EffectivePolicies, Snapshot, authorize};
use tokio::time::Instant;

use super::PodContext;
use crate::tracker::Rechecked;

impl PodContext {
    /// Holds the open inbound connections against the policies of now, by the workload of now: what was attached to it
    /// since they were opened counts.
    pub(crate) async fn recheck(&self) -> Rechecked {
        let snapshot = self.snapshot();
        // While the workload is away nothing new is let in; what is open was let in by it.
        let Some(workload) = snapshot.local_workload(&self.pod) else { return Rechecked::default() };
        let judge = |facts: &Facts| match authorize(&snapshot, workload, facts) {
            Ok(_) => Verdict::Allowed,
            Err(denied) if denied.is_pending() => Verdict::Undecided(denied.into()),
            Err(denied) => Verdict::Refused(denied.into()),
        };
        let done = self.connections.recheck(judge, self.proxy.config.policy_grace).await;
        if done.refused > 0 {
            tracing::info!(pod = %self.name, refused = done.refused, "connections closed due to policy change");
        }
        done
    }

    /// By what the pod's connections are judged; `None` while the control plane does not describe it.
    fn effective_policies(&self, snapshot: &Snapshot) -> Option<EffectivePolicies> {
        snapshot.local_workload(&self.pod).map(|workload| snapshot.effective_policies(workload))
    }

    /// Rechecks, for ever, whenever the policies that apply to the pod are others than before, or one of them is missing
    /// for too long. Most changes of the mesh are about other workloads and cost a look. Watches from the call on, not
    /// from the first poll: nothing that is accepted after the call is judged by policies whose change goes unseen.
    pub(crate) fn recheck_on_changes(self: Arc<Self>) -> impl Spawnable<Output = ()> {
        let mut changes = self.proxy.state.subscribe();
        let mut judged_by = self.effective_policies(&self.snapshot());
        async move {
            let mut next = None;
            loop {
                tokio::select! {
                    snapshot = changes.next() => {
                        let now = self.effective_policies(&snapshot);
                        if now == judged_by {
                            continue;
                        }
                        judged_by = now;
                    }
                    () = until(next) => {}
                }
                next = self.recheck().await.next;
            }
        }
    }
}

/// Resolves at a moment; never when there is none.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
