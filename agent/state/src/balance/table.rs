//! What an endpoint set gives for one [`TableKey`]: the endpoints that take part, by rank, ready for a weighted choice in
//! constant time.
//!
//! There are two levels, as the set has: a table of each chunk's members, kept by the chunk, and one of the chunks. A
//! change of one endpoint rebuilds one chunk's table and the list of chunks: for 10,000 endpoints some two hundred sums
//! and 64 members, once for all changes between two choices and only when a connection chooses. A choice draws a chunk,
//! then a member.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use isthmus_model::Workload;

use super::alias::Alias;
use super::query::{EndpointQuery, TableKey};

/// Tables by key. Few in practice: the clients of one node share its locality, and a service has a port or two.
pub(crate) struct Tables<T>(ArcSwapOption<Vec<(Arc<TableKey>, Arc<T>)>>);

/// Keys of one set that are kept. A service with more named ports than this works, slower.
const MAX_TABLES: usize = 64;

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
    /// Number of endpoints that take part.
    pub(crate) count: usize,
}

/// The endpoints of one rank.
#[derive(Debug)]
pub(crate) struct Tier {
    chunks: Box<[TierChunk]>,
    alias: Alias,
}

/// The part of a tier that is in one chunk.
#[derive(Debug)]
struct TierChunk {
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
    /// Drops all tables.
    pub(crate) fn clear(&mut self) {
        self.0 = ArcSwapOption::const_empty();
    }

    /// Runs with the table whose key `is` accepts; builds and keeps it when there is none. Two callers may build it at the
    /// same time; neither waits for the other.
    pub(crate) fn with<R>(
        &self,
        is: impl Fn(&TableKey) -> bool,
        key: impl FnOnce() -> Arc<TableKey>,
        make: impl FnOnce(&Arc<TableKey>) -> T,
        run: impl FnOnce(&Arc<T>) -> R,
    ) -> R {
        let held = self.0.load();
        let found = held.as_ref().and_then(|tables| tables.iter().find(|(key, _)| is(key)));
        if let Some((_, table)) = found {
            return run(table);
        }
        drop(held);
        let key = key();
        let table = Arc::new(make(&key));
        self.0.rcu(|held| {
            let mut tables = held.as_ref().map(|held| held.to_vec()).unwrap_or_default();
            tables.retain(|(other, _)| **other != *key);
            if tables.len() == MAX_TABLES {
                tables.remove(0);
            }
            tables.push((Arc::clone(&key), Arc::clone(&table)));
            Some(Arc::new(tables))
        });
        run(&table)
    }
}

// === impl ChunkTable ===

impl ChunkTable {
    pub(crate) fn new(query: &EndpointQuery<'_>, members: &[Arc<Workload>]) -> Self {
        let mut ranked: Vec<(usize, u8, u64)> = (0_u8..)
            .zip(members)
            .filter_map(|(at, member)| Some((query.rank(member)?, at, u64::from(member.capacity))))
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
    /// From the tables of the set's chunks, in their order.
    pub(crate) fn new(tables: impl Iterator<Item = Arc<ChunkTable>>) -> Self {
        let mut parts: Vec<(usize, TierChunk)> = Vec::new();
        for (chunk, table) in tables.enumerate() {
            for (tier, of) in table.0.iter().enumerate() {
                parts.push((of.rank, TierChunk { chunk, table: Arc::clone(&table), tier }));
            }
        }
        // Stable, so the chunks of one rank stay in order.
        parts.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
        let count = parts.iter().map(|(_, part)| part.members().len()).sum();
        let mut tiers = Vec::new();
        let mut left = parts.into_iter().peekable();
        while let Some((rank, first)) = left.next() {
            let mut same = vec![first];
            while let Some((_, chunk)) = left.next_if(|(other, _)| *other == rank) {
                same.push(chunk);
            }
            let weights: Vec<u64> = same.iter().map(|chunk| chunk.of().alias.total()).collect();
            if let Some(alias) = Alias::new(&weights) {
                tiers.push(Tier { chunks: same.into(), alias });
            }
        }
        Self { tiers: tiers.into(), count }
    }

    /// The tables of the chunks that have an endpoint of the highest rank.
    #[cfg(test)]
    pub(crate) fn chunks(&self) -> Vec<Arc<ChunkTable>> {
        self.tiers[0].chunks.iter().map(|chunk| Arc::clone(&chunk.table)).collect()
    }
}

impl Tier {
    /// Draws one endpoint of this rank by capacity: the chunk and the position in it.
    pub(crate) fn choose(&self, rng: &mut fastrand::Rng) -> (usize, usize) {
        let chunk = &self.chunks[self.alias.choose(rng)];
        let of = chunk.of();
        (chunk.chunk, usize::from(of.members[of.alias.choose(rng)]))
    }

    /// All endpoints of this rank.
    pub(crate) fn all(&self) -> impl Iterator<Item = (usize, usize)> {
        self.chunks.iter().flat_map(|chunk| chunk.members().iter().map(|at| (chunk.chunk, usize::from(*at))))
    }

    /// The probability of each endpoint.
    #[cfg(test)]
    pub(crate) fn odds(&self) -> Vec<((usize, usize), f64)> {
        #[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
        let odds = |alias: &Alias| {
            let shares = alias.shares();
            let whole: u128 = shares.iter().sum();
            shares.into_iter().map(move |share| share as f64 / whole as f64).collect::<Vec<_>>()
        };
        let mut all = Vec::new();
        for (part, share) in self.chunks.iter().zip(odds(&self.alias)) {
            for (at, member) in part.members().iter().zip(odds(&part.of().alias)) {
                all.push(((part.chunk, usize::from(*at)), share * member));
            }
        }
        all
    }
}

impl TierChunk {
    fn of(&self) -> &ChunkTier {
        &self.table.0[self.tier]
    }

    fn members(&self) -> &[u8] {
        &self.of().members
    }
}
