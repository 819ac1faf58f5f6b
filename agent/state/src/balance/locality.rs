//! How near an endpoint is to a source, by an ordered list of scopes.

use isthmus_model::Workload;
use isthmus_model::service::LbScope;

/// Whether both are in the same place as far as this scope goes; two unknown places are the same.
fn same(scope: LbScope, source: &Workload, endpoint: &Workload) -> bool {
    match scope {
        LbScope::Region => source.locality.region == endpoint.locality.region,
        LbScope::Zone => source.locality.zone == endpoint.locality.zone,
        LbScope::Subzone => source.locality.subzone == endpoint.locality.subzone,
        LbScope::Node => source.node == endpoint.node,
        LbScope::Cluster => source.cluster_id == endpoint.cluster_id,
        LbScope::Network => source.network == endpoint.network,
    }
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
