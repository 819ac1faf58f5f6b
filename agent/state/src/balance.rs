//! Choosing an endpoint of a service: who takes part, who is nearest, and a random one of those by capacity. Every
//! connection chooses anew; what is remembered is only what follows from the set of endpoints itself, see [`table`].

mod alias;
mod ask;
mod locality;
mod table;

use std::sync::Arc;

use isthmus_model::Workload;

pub(crate) use ask::{Ask, Origin, among, is_here};
pub(crate) use table::{ChunkTable, SetTable, Tables};

use crate::snapshot::Snapshot;
use table::Tier;

/// Choices that are drawn before those to be avoided are passed over one by one. Half of a service's endpoints may be
/// avoided at most, so that so many draws all fall on one of them once in 256 times.
const DRAWS: usize = 8;

/// A chosen endpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Picked<'s> {
    pub(crate) workload: &'s Arc<Workload>,
    /// How many it was chosen from, of every rank.
    pub(crate) of: usize,
}

/// Why none was chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NoPick {
    /// No endpoint qualifies.
    Nobody,
    /// Those that do are to be avoided for now.
    Avoided,
}

/// Chooses an endpoint among those that are not to be avoided, of the highest rank that has one.
pub(crate) fn choose<'s>(
    snapshot: &'s Snapshot,
    ask: &Ask<'_>,
    avoid: impl Fn(&Workload) -> bool,
    rng: &mut fastrand::Rng,
) -> Result<Picked<'s>, NoPick> {
    let set = snapshot.services.endpoints(&ask.wanted.key).ok_or(NoPick::Nobody)?;
    set.with_table(ask, |table| {
        if table.tiers.is_empty() {
            return Err(NoPick::Nobody);
        }
        let member = |at| set.at(at);
        let found = table.tiers.iter().find_map(|tier| one_of(tier, &member, &avoid, rng));
        found.map(|workload| Picked { workload, of: table.count }).ok_or(NoPick::Avoided)
    })
}

fn one_of<'s>(
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
    // Most of them, or all, are to be avoided. Each of the others replaces the choice so far with the probability that
    // its share has in the sum so far.
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
