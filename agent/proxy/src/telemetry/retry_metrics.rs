//! Metrics of connection attempts: retries, ejections, and lookups of workloads' hostnames.

use isthmus_model::{Hostname, Workload};
use isthmus_rt::metrics::expiring::Coarse;
use isthmus_rt::metrics::{Count, Expiring, Family, Registry};
use isthmus_state::route::Role;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use super::live_labels::LiveLabels;
use crate::retry::{Cause, GiveUpReason};

/// Metric families of connection attempts.
#[derive(Debug, Default)]
pub(crate) struct RetryMetrics {
    retries: Family<CauseLabels, Counter>,
    gave_up: Family<GiveUpLabels, Counter>,
    ejections: Family<RoleLabels, Counter>,
    on_demand_dns: Expiring<NameLabels, Count>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GiveUpLabels {
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RoleLabels {
    role: &'static str,
}

/// Labels of the lookup of a workload's hostname on behalf of a client.
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

/// The labels under which an expired series is summed.
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
        let help = "Attempts to connect to another upstream after one failed";
        registry.register("isthmus_connect_retries", help, self.retries.clone());
        let help = "Connections that were not established, by the reason for making no further attempt";
        registry.register("isthmus_connect_gave_up", help, self.gave_up.clone());
        let help = "Ejections of endpoints, waypoints and gateways that refused connections";
        registry.register("isthmus_ejections", help, self.ejections.clone());
        let help = "DNS lookups of workloads that have a hostname and no address";
        registry.register_expiring("istio_on_demand_dns", help, &self.on_demand_dns);
    }

    /// Expires idle series of hostnames that no workload has any more; returns their number.
    pub(super) fn sweep(&self, now: Instant, live: &mut LiveLabels<'_>) -> usize {
        self.on_demand_dns.sweep(now, |labels| !live.has_hostname(&labels.hostname))
    }

    /// Counts a failed attempt, by whether another one follows, and an ejection caused by it.
    pub(crate) fn record_failure(
        &self,
        cause: Option<Cause>,
        retry: Result<(), GiveUpReason>,
        ejected: Option<Role>,
    ) {
        if let Some(role) = ejected {
            self.ejections.get_or_create(&RoleLabels { role: role.as_str() }).inc();
        }
        match (retry, cause) {
            (Err(reason), _) => self.record_give_up(reason),
            (Ok(()), Some(cause)) => {
                self.retries.get_or_create(&CauseLabels { cause: cause.as_str() }).inc();
            }
            (Ok(()), None) => {}
        }
    }

    /// Counts a connection for which no further attempt is made.
    pub(crate) fn record_give_up(&self, reason: GiveUpReason) {
        self.gave_up.get_or_create(&GiveUpLabels { why: reason.as_str() }).inc();
    }

    /// Counts a lookup of a workload's hostname for a client.
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
