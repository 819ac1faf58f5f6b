//! Rechecks a pod's open inbound connections when the policies in force change. This module decides when; the
//! connection table iterates and closes, and `isthmus_state` evaluates the policies.

use std::sync::Arc;

use isthmus_model::Facts;
use isthmus_rt::task::Spawnable;
use isthmus_state::{EffectivePolicies, Snapshot, authorize};
use tokio::time::Instant;

use super::PodContext;
use crate::tracker::{RecheckOutcome, RecheckSummary};
use crate::types::Refusal;

impl PodContext {
    /// Evaluates the current policies of the current workload for all open inbound connections and closes the denied
    /// ones.
    pub(crate) async fn recheck(&self) -> RecheckSummary {
        let snapshot = self.snapshot();
        // A workload that the control plane has withdrawn gets no new connection; its open ones stay.
        let Some(workload) = snapshot.local_workload(&self.pod) else { return RecheckSummary::default() };
        let evaluate = |facts: &Facts| match authorize(&snapshot, workload, facts) {
            Ok(_) => RecheckOutcome::Allowed,
            Err(denied) if denied.is_pending() => RecheckOutcome::Pending(denied.into()),
            Err(denied) => RecheckOutcome::Denied(denied.into()),
        };
        let summary = self.connections.recheck(evaluate, self.proxy.config.policy_grace).await;
        if summary.closed > 0 {
            tracing::info!(pod = %self.name, closed = summary.closed, "connections closed due to policy change");
        }
        summary
    }

    /// Evaluates the current policies for one open inbound connection. As in a recheck, it stays while the workload or a
    /// policy of it is unknown.
    pub(crate) fn recheck_one(&self, facts: &Facts) -> Result<(), Refusal> {
        let snapshot = self.snapshot();
        let Some(workload) = snapshot.local_workload(&self.pod) else { return Ok(()) };
        match authorize(&snapshot, workload, facts) {
            Err(denied) if !denied.is_pending() => Err(denied.into()),
            _ => Ok(()),
        }
    }

    /// The policies of the local workload; `None` while the control plane does not describe it.
    fn effective_policies(&self, snapshot: &Snapshot) -> Option<EffectivePolicies> {
        snapshot.local_workload(&self.pod).map(|workload| snapshot.effective_policies(workload))
    }

    /// Rechecks whenever the policies in force change, and when a missing one has exceeded its grace period. Most
    /// changes of the mesh concern other workloads and cost a comparison only.
    ///
    /// Subscribes when called and not when first polled: a change between the two would not be seen, and a connection
    /// that was accepted in between would keep the permit of the old policies.
    pub(crate) fn recheck_on_changes(self: Arc<Self>) -> impl Spawnable<Output = ()> {
        let mut changes = self.proxy.state.subscribe();
        let mut last = self.effective_policies(&self.snapshot());
        async move {
            let mut next_recheck = None;
            loop {
                tokio::select! {
                    snapshot = changes.next() => {
                        let now = self.effective_policies(&snapshot);
                        if now == last {
                            continue;
                        }
                        last = now;
                    }
                    () = until(next_recheck) => {}
                }
                next_recheck = self.recheck().await.next;
            }
        }
    }
}

/// Resolves at a moment; never for `None`.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
