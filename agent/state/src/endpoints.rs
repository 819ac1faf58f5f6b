//! The endpoints of one service, built for two things at once: a change that copies little, and a weighted choice that
//! neither walks nor allocates.
//!
//! Members are ordered by workload uid and held in chunks of at most [`CHUNK`]. Every chunk is shared between
//! snapshots until it changes, with the tables that were made of it. One change copies one chunk and the list of
//! chunks; see [`crate::balance`] for the choice.

use std::sync::Arc;

use isthmus_model::{Workload, WorkloadUid};

use crate::balance::{Ask, ChunkTable, SetTable, Tables};

/// Most members of one chunk.
const CHUNK: usize = 64;

/// A persistent set of workloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointSet {
    chunks: Vec<Chunk>,
    /// Shared by copies that are the same set.
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
    /// A copy is made to be changed, so its tables would be of no use.
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

    /// Its members, to be changed.
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

    /// The chunk that holds the uid, or would.
    fn chunk_of(&self, uid: &WorkloadUid) -> Option<usize> {
        let after = self.chunks.partition_point(|chunk| !chunk.starts_after(uid));
        (!self.chunks.is_empty()).then(|| after.saturating_sub(1))
    }

    /// Adds a workload, or replaces the one of the same uid.
    pub(crate) fn put(&mut self, workload: Arc<Workload>) {
        self.changed();
        let Some(at) = self.chunk_of(&workload.uid) else {
            self.chunks.push(Chunk::new(vec![workload]));
            return;
        };
        let chunk = &mut self.chunks[at];
        let place = chunk.find(&workload.uid);
        let members = chunk.edit();
        match place {
            Ok(place) => members[place] = workload,
            Err(place) => members.insert(place, workload),
        }
        if members.len() > CHUNK {
            let upper = members.split_off(CHUNK / 2);
            self.chunks.insert(at + 1, Chunk::new(upper));
        }
    }

    /// Removes the workload of this uid, if there is one.
    pub(crate) fn take(&mut self, uid: &WorkloadUid) {
        let Some(at) = self.chunk_of(uid) else { return };
        let Ok(place) = self.chunks[at].find(uid) else { return };
        self.changed();
        let members = self.chunks[at].edit();
        members.remove(place);
        let left = members.len();
        if left == 0 {
            self.chunks.remove(at);
        } else if self.chunks.get(at + 1).is_some_and(|next| left + next.members().len() <= CHUNK / 2) {
            // Rolling updates would otherwise leave many chunks with one member.
            let next = self.chunks.remove(at + 1);
            self.chunks[at].edit().extend(next.members().iter().cloned());
        }
    }

    /// Uses the table that answers a question, which is made of the chunks' when nobody asked it of this set before.
    pub(crate) fn with_table<R>(&self, ask: &Ask<'_>, run: impl FnOnce(&SetTable) -> R) -> R {
        let make = |view: &Arc<_>| {
            SetTable::new(self.chunks.iter().map(|chunk| {
                let table = |_: &_| ChunkTable::new(ask, chunk.members());
                chunk.0.tables.with(|other| *other == **view, || Arc::clone(view), table, Arc::clone)
            }))
        };
        self.tables.with(|view| ask.has(view), || Arc::new(ask.view()), make, |table| run(table))
    }

    /// The member at a place that a table named.
    pub(crate) fn at(&self, (chunk, member): (usize, usize)) -> &Arc<Workload> {
        &self.chunks[chunk].members()[member]
    }

    fn changed(&mut self) {
        match Arc::get_mut(&mut self.tables) {
            Some(tables) => tables.clear(),
            None => self.tables = Arc::default(),
        }
    }
}

#[cfg(test)]
mod tests;
