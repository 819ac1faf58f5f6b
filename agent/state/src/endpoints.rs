//! The endpoints of one service, built for two things at once: a change that copies little, and a weighted choice that
//! neither walks nor allocates.
//!
//! Members are ordered by workload uid and held in chunks of at most [`CHUNK`]. Every chunk is shared between
//! snapshots until it changes, and is stored beside the sums of its members' capacities. One change copies one chunk
//! and the list of chunks; a choice walks the sums, then one chunk.

use std::sync::Arc;

use isthmus_model::{Health, Workload, WorkloadUid};

/// Most members of one chunk.
const CHUNK: usize = 64;

/// A persistent set of workloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct EndpointSet {
    chunks: Vec<Chunk>,
}

#[derive(Clone, Debug)]
struct Chunk {
    members: Arc<Vec<Arc<Workload>>>,
    weight: Weight,
}

/// Sums of capacities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Weight {
    healthy: u64,
    all: u64,
}

/// Which members take part in a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    Healthy,
    All,
}

// === impl Among ===

impl Among {
    pub(crate) fn admits(self, workload: &Workload) -> bool {
        self == Self::All || workload.status == Health::Healthy
    }

    fn of(self, weight: Weight) -> u64 {
        match self {
            Self::Healthy => weight.healthy,
            Self::All => weight.all,
        }
    }
}

// === impl Chunk ===

impl Chunk {
    fn new(members: Vec<Arc<Workload>>) -> Self {
        let mut chunk = Self { members: Arc::new(members), weight: Weight::default() };
        chunk.weigh();
        chunk
    }

    fn weigh(&mut self) {
        self.weight = self.members.iter().fold(Weight::default(), |sum, member| {
            let capacity = u64::from(member.capacity);
            let healthy = if Among::Healthy.admits(member) { capacity } else { 0 };
            Weight { healthy: sum.healthy + healthy, all: sum.all + capacity }
        });
    }

    fn find(&self, uid: &WorkloadUid) -> Result<usize, usize> {
        self.members.binary_search_by(|member| member.uid.cmp(uid))
    }

    fn starts_after(&self, uid: &WorkloadUid) -> bool {
        self.members.first().is_none_or(|first| first.uid > *uid)
    }
}

// === impl EndpointSet ===

impl EndpointSet {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.chunks.iter().flat_map(|chunk| chunk.members.iter())
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
        let Some(at) = self.chunk_of(&workload.uid) else {
            self.chunks.push(Chunk::new(vec![workload]));
            return;
        };
        let chunk = &mut self.chunks[at];
        let place = chunk.find(&workload.uid);
        let members = Arc::make_mut(&mut chunk.members);
        match place {
            Ok(place) => members[place] = workload,
            Err(place) => members.insert(place, workload),
        }
        if members.len() > CHUNK {
            let upper = members.split_off(CHUNK / 2);
            self.chunks.insert(at + 1, Chunk::new(upper));
        }
        self.chunks[at].weigh();
    }

    /// Removes the workload of this uid, if there is one.
    pub(crate) fn take(&mut self, uid: &WorkloadUid) {
        let Some(at) = self.chunk_of(uid) else { return };
        let chunk = &mut self.chunks[at];
        let Ok(place) = chunk.find(uid) else { return };
        Arc::make_mut(&mut chunk.members).remove(place);
        chunk.weigh();
        let left = chunk.members.len();
        if left == 0 {
            self.chunks.remove(at);
        } else if self.chunks.get(at + 1).is_some_and(|next| left + next.members.len() <= CHUNK / 2) {
            // Rolling updates would otherwise leave many chunks with one member.
            let next = self.chunks.remove(at + 1);
            let chunk = &mut self.chunks[at];
            Arc::make_mut(&mut chunk.members).extend(next.members.iter().cloned());
            chunk.weigh();
        }
    }

    /// A member, with a probability in proportion to its capacity; `None` when all capacities are zero.
    pub(crate) fn choose(&self, among: Among, rng: &mut fastrand::Rng) -> Option<&Arc<Workload>> {
        let total: u64 = self.chunks.iter().map(|chunk| among.of(chunk.weight)).sum();
        if total == 0 {
            return None;
        }
        let mut left = rng.u64(0..total);
        let chunk = self.chunks.iter().find(|chunk| passes(&mut left, among.of(chunk.weight)))?;
        let admitted = chunk.members.iter().filter(|member| among.admits(member));
        admitted.into_iter().find(|member| passes(&mut left, u64::from(member.capacity)))
    }
}

/// Whether the point lies within this weight; otherwise it moves on by it.
fn passes(point: &mut u64, weight: u64) -> bool {
    if *point < weight {
        return true;
    }
    *point -= weight;
    false
}

#[cfg(test)]
mod tests;
