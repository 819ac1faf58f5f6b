//! Choosing an endpoint of a service: which endpoints take part, which are nearest, and a random one of those weighted
//! by capacity.
//!
//! Each connection draws anew; the only thing kept between draws is what follows from the endpoint set itself, see
//! [`table`]. It knows nothing of routes, waypoints or gateways.

mod alias;
mod endpoint_set;
mod locality;
mod query;
mod table;

use std::sync::Arc;

use isthmus_model::Workload;

pub(crate) use endpoint_set::EndpointSet;
pub(crate) use query::{EndpointQuery, QueryOrigin, health_filter, is_gateway_endpoint};

use table::Tier;

/// Draws from a tier before endpoints to avoid are skipped by a linear walk. At most half of a service's endpoints are
/// ejected, so this many draws all hit ejected ones once in 256 connections.
const DRAWS: usize = 8;

/// A chosen endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picked<'s> {
    pub(crate) workload: &'s Arc<Workload>,
    /// Number of endpoints that took part in the choice, of every rank.
    pub(crate) of: usize,
}

/// Why no endpoint was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoEndpoint {
    /// No endpoint qualifies.
    NoneQualify,
    /// Endpoints qualify, and all of them are to be avoided for now.
    AllAvoided,
}

/// Chooses an endpoint that is not to be avoided, of the highest rank that has one.
pub(crate) fn choose<'s>(
    set: &'s EndpointSet,
    query: &EndpointQuery<'_>,
    avoid: impl Fn(&Workload) -> bool,
    rng: &mut fastrand::Rng,
) -> Result<Picked<'s>, NoEndpoint> {
    set.with_table(query, |table| {
        if table.tiers.is_empty() {
            return Err(NoEndpoint::NoneQualify);
        }
        let member = |at| set.at(at);
        let found = table.tiers.iter().find_map(|tier| draw(tier, &member, &avoid, rng));
        found.map(|workload| Picked { workload, of: table.count }).ok_or(NoEndpoint::AllAvoided)
    })
}

fn draw<'s>(
    tier: &Tier,
    member: &impl Fn((usize, usize)) -> &'s Arc<Workload>,
    avoid: &impl Fn(&Workload) -> bool,
    rng: &mut fastrand::Rng,
) -> Option<&'s Arc<Workload>> {
    for _ in 0..DRAWS {
        let drawn = member(tier.choose(rng));
        if !avoid(drawn) {
            return Some(drawn);
        }
    }
    // Most members are to be avoided, or all. Weighted reservoir sampling over the rest: each replaces the choice so far
    // with the probability that its capacity has in the sum so far.
    let (mut sum, mut choice) = (0_u64, None);
    for workload in tier.all().map(member).filter(|workload| !avoid(workload)) {
        sum += u64::from(workload.capacity);
        if rng.u64(0..sum) < u64::from(workload.capacity) {
            choice = Some(workload);
        }
    }
    choice
}

#[cfg(test)]
mod tests;
