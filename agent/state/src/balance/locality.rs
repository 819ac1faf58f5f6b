//! How near an endpoint is to a source, by an ordered list of scopes.

use isthmus_model::Workload;
use isthmus_model::service::LbScope;

/// Where a workload is, as far as this scope goes. Two unknown places are the same.
pub(super) fn place(scope: LbScope, workload: &Workload) -> &str {
    match scope {
        LbScope::Region => workload.locality.region.as_str(),
        LbScope::Zone => workload.locality.zone.as_str(),
        LbScope::Subzone => workload.locality.subzone.as_str(),
        LbScope::Node => workload.node.as_str(),
        LbScope::Cluster => workload.cluster_id.as_str(),
        LbScope::Network => workload.network.as_str(),
    }
}

/// Whether both are in the same place.
fn same(scope: LbScope, source: &Workload, endpoint: &Workload) -> bool {
    place(scope, source) == place(scope, endpoint)
}

/// Whether every scope is the same.
pub(super) fn matches_all(source: &Workload, endpoint: &Workload, scopes: &[LbScope]) -> bool {
    scopes.iter().all(|scope| same(*scope, source, endpoint))
}

/// How many leading scopes are the same. A network in first place is a preference above all others, yet one that a
/// remote endpoint may fail without losing what it has in common otherwise: it counts as much as all scopes together.
pub(super) fn rank(source: &Workload, endpoint: &Workload, scopes: &[LbScope]) -> usize {
    let leading =
        |scopes: &[LbScope]| scopes.iter().take_while(|scope| same(**scope, source, endpoint)).count();
    match scopes {
        [LbScope::Network, rest @ ..] => {
            let local = if same(LbScope::Network, source, endpoint) { scopes.len() } else { 0 };
            local + leading(rest)
        }
        scopes => leading(scopes),
    }
}
