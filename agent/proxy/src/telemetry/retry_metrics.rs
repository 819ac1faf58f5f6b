//! What is counted while a far end is looked for: tries, who is put out, names that are looked up.

use isthmus_model::{Hostname, Workload};
use isthmus_rt::metrics::expiring::Coarse;
use isthmus_rt::metrics::{Count, Expiring, Family, Registry};
use isthmus_state::route::Role;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::live_labels::LiveLabels;
use crate::retry::{Cause, GiveUpReason};

/// The families.
#[derive(Debug, Default)]
pub(crate) struct RetryMetrics {
    retries: Family<CauseLabels, Counter>,
    gave_up: Family<WhyLabels, Counter>,
    ejections: Family<RoleLabels, Counter>,
    on_demand_dns: Expiring<NameLabels, Count>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabels {
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabels {
    role: &'static str,
}

/// A lookup of a workload's name, on behalf of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NameLabels {
    source_workload: String,
    source_canonical_service: String,
    source_canonical_revision: String,
    source_workload_namespace: String,
    source_principal: String,
    source_app: String,
    source_version: String,
    source_cluster: String,
    hostname: String,
}

/// What is kept of them when a series ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeptNameLabels {
    source_cluster: String,
}

impl Coarse for NameLabels {
    type Kept = KeptNameLabels;

    fn coarse(&self) -> KeptNameLabels {
        KeptNameLabels { source_cluster: self.source_cluster.clone() }
    }
}

impl RetryMetrics {
    pub(super) fn register(&self, registry: &Registry) {
        let help = "Tries of another endpoint before a far end had accepted";
        registry.register("isthmus_connect_retries", help, self.retries.clone());
        let help = "Connections that were not made, by why no other endpoint was tried";
        registry.register("isthmus_connect_gave_up", help, self.gave_up.clone());
        let help = "Endpoints, waypoints and gateways that refused and are not chosen for a while";
        registry.register("isthmus_ejections", help, self.ejections.clone());
        let help = "Lookups of workloads that are known by a hostname only";
        registry.register_expiring("istio_on_demand_dns", help, &self.on_demand_dns);
    }

    /// Ends the series of names that no workload has any more.
    pub(super) fn sweep(&self, now: Instant, present: &mut LiveLabels<'_>) -> usize {
        self.on_demand_dns.sweep(now, |labels| present.lacks_name(&labels.hostname))
    }

    /// A try failed: another endpoint is tried, or none.
    pub(crate) fn record_failure(
        &self,
        cause: Option<Cause>,
        again: Result<(), GiveUpReason>,
        ejected: Option<Role>,
    ) {
        if let Some(role) = ejected {
            self.ejections.get_or_create(&RoleLabels { role: role.as_str() }).inc();
        }
        match (again, cause) {
            (Err(why), _) => self.gave_up(why),
            (Ok(()), Some(cause)) => {
                self.retries.get_or_create(&CauseLabels { cause: cause.as_str() }).inc();
            }
            (Ok(()), None) => {}
        }
    }

    /// No other endpoint is tried.
    pub(crate) fn gave_up(&self, why: GiveUpReason) {
        self.gave_up.get_or_create(&WhyLabels { why: why.as_str() }).inc();
    }

    /// A workload's name is looked up for a client.
    pub(crate) fn on_demand_dns(&self, client: &Workload, hostname: &Hostname) {
        let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
        let labels = NameLabels {
            source_workload: known(client.workload_name.as_str()),
            source_canonical_service: known(client.canonical_name.as_str()),
            source_canonical_revision: known(client.canonical_revision.as_str()),
            source_workload_namespace: known(client.namespace.as_str()),
            source_principal: client.identity().to_string(),
            source_app: known(client.canonical_name.as_str()),
            source_version: known(client.canonical_revision.as_str()),
            source_cluster: known(client.cluster_id.as_str()),
            hostname: hostname.to_string(),
        };
        self.on_demand_dns.get_or_create(&labels).inc();
    }
}
