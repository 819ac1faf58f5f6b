//! How near an endpoint is to a client, by an ordered list of scopes (`routingPreference` of the workload API).

use isthmus_model::Workload;
use isthmus_model::service::LbScope;

/// A workload's value for a scope. Two unknown (empty) values are the same.
pub(super) fn value(scope: LbScope, workload: &Workload) -> &str {
    match scope {
        LbScope::Region => workload.locality.region.as_str(),
        LbScope::Zone => workload.locality.zone.as_str(),
        LbScope::Subzone => workload.locality.subzone.as_str(),
        LbScope::Node => workload.node.as_str(),
        LbScope::Cluster => workload.cluster_id.as_str(),
        LbScope::Network => workload.network.as_str(),
    }
}

fn same(scope: LbScope, source: &Workload, endpoint: &Workload) -> bool {
    value(scope, source) == value(scope, endpoint)
}

/// Whether the endpoint has the client's value for every scope.
pub(super) fn matches_all(source: &Workload, endpoint: &Workload, scopes: &[LbScope]) -> bool {
    scopes.iter().all(|scope| same(*scope, source, endpoint))
}

/// Number of leading scopes that match. A network in first place outranks all others together, yet an endpoint of
/// another network keeps the rank of the scopes behind it: remote endpoints of the client's region still come before
/// other remote ones.
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
