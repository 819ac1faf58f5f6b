//! The endpoints of one service, built for two things at once: a change that copies little, and a weighted choice that
//! neither walks nor allocates.
//!
//! Members are ordered by workload uid and held in chunks of at most [`CHUNK`]. Every chunk is shared between
//! snapshots until it changes, with the tables that were built from it. One change copies one chunk and the list of
//! chunks. It stores and finds; [`super::choose`] chooses.

use std::sync::Arc;

use isthmus_model::{Workload, WorkloadUid};

use super::query::{EndpointQuery, TableKey};
use super::table::{ChunkTable, SetTable, Tables};

/// Most members of a chunk.
const CHUNK: usize = 64;

/// A persistent set of workloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointSet {
    chunks: Vec<Chunk>,
    /// Shared by copies of the same set.
    tables: Arc<Tables<SetTable>>,
}

#[derive(Clone, Debug)]
struct Chunk(Arc<Members>);

#[derive(Debug)]
struct Members {
    list: Vec<Arc<Workload>>,
    tables: Tables<ChunkTable>,
}

// === impl Members ===

impl Clone for Members {
    /// A copy is made in order to change it, so the tables would be stale at once.
    fn clone(&self) -> Self {
        Self { list: self.list.clone(), tables: Tables::default() }
    }
}

// === impl Chunk ===

impl Chunk {
    fn new(list: Vec<Arc<Workload>>) -> Self {
        Self(Arc::new(Members { list, tables: Tables::default() }))
    }

    fn members(&self) -> &[Arc<Workload>] {
        &self.0.list
    }

    /// The members for a change; drops the tables built from them.
    fn edit(&mut self) -> &mut Vec<Arc<Workload>> {
        let members = Arc::make_mut(&mut self.0);
        members.tables.clear();
        &mut members.list
    }

    fn find(&self, uid: &WorkloadUid) -> Result<usize, usize> {
        self.members().binary_search_by(|member| member.uid.cmp(uid))
    }

    fn starts_after(&self, uid: &WorkloadUid) -> bool {
        self.members().first().is_none_or(|first| first.uid > *uid)
    }
}

// === impl EndpointSet ===

impl EndpointSet {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.chunks.iter().flat_map(|chunk| chunk.members().iter())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn contains(&self, uid: &WorkloadUid) -> bool {
        self.chunk_of(uid).is_some_and(|at| self.chunks[at].find(uid).is_ok())
    }

    /// The chunk that has the uid, or would have it.
    fn chunk_of(&self, uid: &WorkloadUid) -> Option<usize> {
        let after = self.chunks.partition_point(|chunk| !chunk.starts_after(uid));
        (!self.chunks.is_empty()).then(|| after.saturating_sub(1))
    }

    /// Adds a workload, or replaces the one of the same uid.
    pub(crate) fn insert(&mut self, workload: Arc<Workload>) {
        self.drop_tables();
        let Some(at) = self.chunk_of(&workload.uid) else {
            self.chunks.push(Chunk::new(vec![workload]));
            return;
        };
        let chunk = &mut self.chunks[at];
        let position = chunk.find(&workload.uid);
        let members = chunk.edit();
        match position {
            Ok(position) => members[position] = workload,
            Err(position) => members.insert(position, workload),
        }
        if members.len() > CHUNK {
            let upper = members.split_off(CHUNK / 2);
            self.chunks.insert(at + 1, Chunk::new(upper));
        }
    }

    /// Removes the workload of this uid, if there is one.
    pub(crate) fn remove(&mut self, uid: &WorkloadUid) {
        let Some(at) = self.chunk_of(uid) else { return };
        let Ok(position) = self.chunks[at].find(uid) else { return };
        self.drop_tables();
        let members = self.chunks[at].edit();
        members.remove(position);
        let left = members.len();
        if left == 0 {
            self.chunks.remove(at);
        } else if self.chunks.get(at + 1).is_some_and(|next| left + next.members().len() <= CHUNK / 2) {
            // Rolling updates would otherwise leave many chunks with one member.
            let next = self.chunks.remove(at + 1);
            self.chunks[at].edit().extend(next.members().iter().cloned());
        }
    }

    /// Runs with the table for a query; builds it from the tables of the chunks at the first such query to this set.
    pub(crate) fn with_table<R>(&self, query: &EndpointQuery<'_>, run: impl FnOnce(&SetTable) -> R) -> R {
        let make = |key: &Arc<TableKey>| {
            SetTable::new(self.chunks.iter().map(|chunk| {
                let table = |_: &_| ChunkTable::new(query, chunk.members());
                chunk.0.tables.with(|other| *other == **key, || Arc::clone(key), table, Arc::clone)
            }))
        };
        self.tables.with(|key| query.has(key), || Arc::new(query.key()), make, |table| run(table))
    }

    /// The member at a position that a table gave.
    pub(crate) fn at(&self, (chunk, member): (usize, usize)) -> &Arc<Workload> {
        &self.chunks[chunk].members()[member]
    }

    fn drop_tables(&mut self) {
        match Arc::get_mut(&mut self.tables) {
            Some(tables) => tables.clear(),
            None => self.tables = Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests;
