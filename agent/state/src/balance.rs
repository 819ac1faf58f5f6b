//! Choosing an endpoint of a service: who takes part, who is nearest, and a random one of those by capacity. Every
//! connection chooses anew; nothing is remembered.

mod locality;

use std::sync::Arc;

use isthmus_model::service::{HealthPolicy, LbMode, LbScope};
use isthmus_model::{Service, Workload};

use crate::endpoints::{Among, EndpointSet};
use crate::snapshot::Snapshot;
use crate::target::{Wanted, is_reachable};

/// Chooses an endpoint for a connection from `source`; `None` when no endpoint qualifies.
pub(crate) fn choose<'s>(
    snapshot: &'s Snapshot,
    source: &Workload,
    wanted: &Wanted<'_>,
    rng: &mut fastrand::Rng,
) -> Option<&'s Arc<Workload>> {
    let set = snapshot.services.endpoints(&wanted.key)?;
    let eligible = |workload: &Workload| is_reachable(workload, source) && wanted.port_of(workload).is_some();
    match ranking(wanted.service) {
        None => anyone(set, among(wanted.service), eligible, rng),
        Some(Ranking::Strict(scopes)) => {
            let near = |workload: &Workload| locality::matches_all(source, workload, scopes);
            anyone(set, among(wanted.service), |workload| near(workload) && eligible(workload), rng)
        }
        Some(Ranking::Nearest(scopes)) => {
            let among = among(wanted.service);
            let members = || set.iter().filter(|workload| among.admits(workload));
            let ranked = |workload: &'s Arc<Workload>| (locality::rank(source, workload, scopes), workload);
            // As below, a first choice that is eligible is as good as one among the eligible only, and ranking alone
            // is cheaper than asking everybody.
            let first = nearest(members().map(ranked), rng)?;
            if eligible(first) {
                return Some(first);
            }
            nearest(members().filter(|workload| eligible(workload)).map(ranked), rng)
        }
    }
}

/// A random one by capacity of those that are eligible.
pub(crate) fn anyone<'s>(
    set: &'s EndpointSet,
    among: Among,
    eligible: impl Fn(&Workload) -> bool,
    rng: &mut fastrand::Rng,
) -> Option<&'s Arc<Workload>> {
    // Nearly always everybody is eligible. Where the first choice is not, choosing again among the eligible ones
    // leaves each of them its proper share.
    let first = set.choose(among, rng)?;
    if eligible(first) {
        return Some(first);
    }
    let eligible = set.iter().filter(|workload| among.admits(workload) && eligible(workload));
    nearest(eligible.map(|workload| (0, workload)), rng)
}

/// Which endpoints count for a service.
pub(crate) fn among(service: &Service) -> Among {
    match service.load_balancer.as_ref().map(|balancer| balancer.health_policy) {
        Some(HealthPolicy::AllowAll) => Among::All,
        Some(HealthPolicy::OnlyHealthy) | None => Among::Healthy,
    }
}

enum Ranking<'a> {
    Strict(&'a [LbScope]),
    Nearest(&'a [LbScope]),
}

fn ranking(service: &Service) -> Option<Ranking<'_>> {
    let balancer = service.load_balancer.as_ref()?;
    match balancer.mode {
        LbMode::Strict => Some(Ranking::Strict(&balancer.routing_preferences)),
        LbMode::Failover => Some(Ranking::Nearest(&balancer.routing_preferences)),
        LbMode::Standard | LbMode::Passthrough => None,
    }
}

/// A random one by capacity of those with the best rank, in one pass: each replaces the choice so far with the
/// probability that its share has in the sum so far.
fn nearest<'s>(
    ranked: impl Iterator<Item = (usize, &'s Arc<Workload>)>,
    rng: &mut fastrand::Rng,
) -> Option<&'s Arc<Workload>> {
    let (mut best, mut sum, mut choice) = (0, 0_u64, None);
    for (rank, workload) in ranked {
        let capacity = u64::from(workload.capacity);
        if capacity == 0 || rank < best {
            continue;
        }
        if rank > best {
            (best, sum) = (rank, 0);
        }
        sum += capacity;
        if rng.u64(0..sum) < capacity {
            choice = Some(workload);
        }
    }
    choice
}

#[cfg(test)]
mod tests;
