//! What was worked out of a set of endpoints for one [`View`]: who takes part, by rank, ready to be chosen from in
//! constant time.
//!
//! There are two storeys, as the set has: a table of each chunk's members, kept by the chunk, and one of the chunks. A
//! change of one endpoint makes one chunk's table anew, and the list of chunks: for 10,000 endpoints some two hundred
//! sums and 64 members, once for all changes between two choices and only when somebody chooses. A choice draws a chunk,
//! then a member.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use isthmus_model::Workload;

use super::alias::Alias;
use super::ask::{Ask, View};

/// Tables by view, for as many views as are likely: one client's place, a port or two.
pub(crate) struct Tables<T>(ArcSwapOption<Vec<(Arc<View>, Arc<T>)>>);

/// Views of one set that are kept. A service with more named ports than this works, slower.
const VIEWS: usize = 64;

/// The members of one chunk, by rank, highest first.
#[derive(Debug)]
pub(crate) struct ChunkTable(Box<[ChunkTier]>);

#[derive(Debug)]
struct ChunkTier {
    rank: usize,
    /// Positions in the chunk.
    members: Box<[u8]>,
    alias: Alias,
}

/// The chunks of a set, by rank, highest first.
#[derive(Debug)]
pub(crate) struct SetTable {
    pub(crate) tiers: Box<[Tier]>,
    /// How many take part.
    pub(crate) count: usize,
}

/// Those of one rank.
#[derive(Debug)]
pub(crate) struct Tier {
    places: Box<[Place]>,
    alias: Alias,
}

/// One chunk's part in a tier.
#[derive(Debug)]
struct Place {
    chunk: usize,
    table: Arc<ChunkTable>,
    tier: usize,
}

// === impl Tables ===

impl<T> Default for Tables<T> {
    fn default() -> Self {
        Self(ArcSwapOption::const_empty())
    }
}

impl<T> fmt::Debug for Tables<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.load().as_ref().map_or(0, |tables| tables.len());
        write!(f, "{count} tables")
    }
}

impl<T> Tables<T> {
    /// Forgets all of them.
    pub(crate) fn clear(&mut self) {
        self.0 = ArcSwapOption::const_empty();
    }

    /// Uses the table that `is` names, made and kept when there is none. Two callers may both make it; neither waits.
    pub(crate) fn with<R>(
        &self,
        is: impl Fn(&View) -> bool,
        view: impl FnOnce() -> Arc<View>,
        make: impl FnOnce(&Arc<View>) -> T,
        run: impl FnOnce(&Arc<T>) -> R,
    ) -> R {
        let held = self.0.load();
        let found = held.as_ref().and_then(|tables| tables.iter().find(|(view, _)| is(view)));
        if let Some((_, table)) = found {
            return run(table);
        }
        drop(held);
        let view = view();
        let table = Arc::new(make(&view));
        self.0.rcu(|held| {
            let mut tables = held.as_ref().map(|held| held.to_vec()).unwrap_or_default();
            tables.retain(|(other, _)| **other != *view);
            if tables.len() == VIEWS {
                tables.remove(0);
            }
            tables.push((Arc::clone(&view), Arc::clone(&table)));
            Some(Arc::new(tables))
        });
        run(&table)
    }
}

// === impl ChunkTable ===

impl ChunkTable {
    pub(crate) fn new(ask: &Ask<'_>, members: &[Arc<Workload>]) -> Self {
        let mut ranked: Vec<(usize, u8, u64)> = (0_u8..)
            .zip(members)
            .filter_map(|(at, member)| Some((ask.rank(member)?, at, u64::from(member.capacity))))
            .collect();
        ranked.sort_by_key(|(rank, at, _)| (std::cmp::Reverse(*rank), *at));
        let tiers = ranked.chunk_by(|a, b| a.0 == b.0).filter_map(|same| {
            let weights: Vec<u64> = same.iter().map(|(.., weight)| *weight).collect();
            let members = same.iter().map(|(_, at, _)| *at).collect();
            Some(ChunkTier { rank: same.first()?.0, members, alias: Alias::new(&weights)? })
        });
        Self(tiers.collect())
    }
}

// === impl SetTable ===

impl SetTable {
    /// Of the tables of its chunks, in their order.
    pub(crate) fn new(chunks: impl Iterator<Item = Arc<ChunkTable>>) -> Self {
        let mut places: Vec<(usize, Place)> = Vec::new();
        for (chunk, table) in chunks.enumerate() {
            for (tier, of) in table.0.iter().enumerate() {
                places.push((of.rank, Place { chunk, table: Arc::clone(&table), tier }));
            }
        }
        // Stable, so the chunks of one rank stay in order.
        places.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        let count = places.iter().map(|(_, place)| place.members().len()).sum();
        let mut tiers = Vec::new();
        let mut left = places.into_iter().peekable();
        while let Some((rank, first)) = left.next() {
            let mut same = vec![first];
            while let Some((_, place)) = left.next_if(|(other, _)| *other == rank) {
                same.push(place);
            }
            let weights: Vec<u64> = same.iter().map(|place| place.of().alias.total()).collect();
            if let Some(alias) = Alias::new(&weights) {
                tiers.push(Tier { places: same.into(), alias });
            }
        }
        Self { tiers: tiers.into(), count }
    }

    /// The tables of its chunks, as far as they have anybody of the highest rank.
    #[cfg(test)]
    pub(crate) fn chunks(&self) -> Vec<Arc<ChunkTable>> {
        self.tiers[0].places.iter().map(|place| Arc::clone(&place.table)).collect()
    }
}

impl Tier {
    /// One of this rank, by capacity: the chunk and the position in it.
    pub(crate) fn choose(&self, rng: &mut fastrand::Rng) -> (usize, usize) {
        let place = &self.places[self.alias.choose(rng)];
        let of = place.of();
        (place.chunk, usize::from(of.members[of.alias.choose(rng)]))
    }

    /// Everybody of this rank.
    pub(crate) fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        self.places.iter().flat_map(|place| place.members().iter().map(|at| (place.chunk, usize::from(*at))))
    }

    /// Everybody's probability.
    #[cfg(test)]
    pub(crate) fn odds(&self) -> Vec<((usize, usize), f64)> {
        #[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
        let odds = |alias: &Alias| {
            let shares = alias.shares();
            let whole: u128 = shares.iter().sum();
            shares.into_iter().map(move |share| share as f64 / whole as f64).collect::<Vec<_>>()
        };
        let mut all = Vec::new();
        for (place, chunk) in self.places.iter().zip(odds(&self.alias)) {
            for (at, member) in place.members().iter().zip(odds(&place.of().alias)) {
                all.push(((place.chunk, usize::from(*at)), chunk * member));
            }
        }
        all
    }
}

impl Place {
    fn of(&self) -> &ChunkTier {
        &self.table.0[self.tier]
    }

    fn members(&self) -> &[u8] {
        &self.of().members
    }
}
