//! Which handshakes have a slot, which wait for one, and which are ended for others: shared out between the networks of
//! the clients, then between their addresses. A value that is given the time; it knows no socket and starts nothing.
//!
//! A free slot goes to the waiting client whose network, then whose address, has the fewest slots. While none is free, it
//! takes one from
//! - an address with more than its share, once that handshake is [`OVER_ADDRESS`] of the grace old;
//! - a network with more than its share, once that handshake is [`OVER_NETWORK`] of the grace old;
//! - any address, once that handshake is as old as the grace.
//!
//! So a client that floods waits for slots that it holds itself. Honest handshakes of a burst are younger than all of
//! these.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::source::Source;

/// Part of the grace that a handshake has whose address holds more than its share.
const OVER_ADDRESS: u32 = 50;
/// Part of the grace that a handshake has whose network holds more than its share.
const OVER_NETWORK: u32 = 4;
/// An address has a share of at least this part of the slots: a burst of one honest client.
const LEAST_OF_ADDRESS: usize = 16;
/// A network has a share of at least this part of the slots: a burst of the pods of one node.
const LEAST_OF_NETWORK: usize = 4;

/// Names one handshake.
pub(super) type Id = u64;

/// What is to be done with a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It has a slot.
    Grant(Id),
    /// It had a slot, which another one got.
    Evict(Id),
    /// It has waited and gets no slot, since too many wait.
    Refuse(Id),
}

/// The handshakes of one pod or gateway.
#[derive(Debug)]
pub(super) struct HandshakeQueue {
    /// Number of slots.
    limit: usize,
    /// Number of handshakes that may wait for one.
    waiting_limit: usize,
    /// A handshake of a client within its share is not evicted before this age.
    grace: Duration,
    next_id: Id,
    /// Those with a slot and since when, oldest first.
    slots: HashMap<Source, VecDeque<(Id, Instant)>>,
    taken: usize,
    /// Number of slots of each network.
    networks: HashMap<IpAddr, usize>,
    /// Those that wait, in order of arrival.
    waiting: HashMap<Source, VecDeque<Id>>,
    queued: usize,
}

impl HandshakeQueue {
    pub(super) fn new(limit: usize, waiting_limit: usize, grace: Duration) -> Self {
        Self {
            limit: limit.max(1),
            waiting_limit: waiting_limit.max(1),
            grace,
            next_id: 0,
            slots: HashMap::new(),
            taken: 0,
            networks: HashMap::new(),
            waiting: HashMap::new(),
            queued: 0,
        }
    }

    /// A handshake is to begin. It waits; [`Self::advance`] says how it goes on.
    pub(super) fn request(&mut self, source: Source) -> Id {
        self.next_id += 1;
        self.waiting.entry(source).or_default().push_back(self.next_id);
        self.queued += 1;
        self.next_id
    }

    /// A handshake has ended, or does not wait any longer. Does nothing for one that was evicted or refused.
    pub(super) fn release(&mut self, source: Source, id: Id) {
        if let Some(slots) = self.slots.get_mut(&source)
            && let Ok(at) = slots.binary_search_by_key(&id, |(id, _)| *id)
        {
            slots.remove(at);
            self.freed(source);
        } else if let Entry::Occupied(mut waiting) = self.waiting.entry(source)
            && let Ok(at) = waiting.get().binary_search(&id)
        {
            waiting.get_mut().remove(at);
            self.queued -= 1;
            if waiting.get().is_empty() {
                waiting.remove();
            }
        }
    }

    /// What can be done now.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(source) = self.next_source() {
            if self.taken >= self.limit {
                let Some((_, victim)) = self.victim(source).filter(|(at, _)| *at <= now) else { break };
                actions.extend(self.evict_oldest(victim));
            }
            actions.extend(self.grant(source, now));
        }
        while self.queued > self.waiting_limit {
            actions.extend(self.refuse_newest());
        }
        actions
    }

    /// When [`Self::advance`] can do something if nothing happens before.
    pub(super) fn due(&self) -> Option<Instant> {
        let source = self.next_source()?;
        self.victim(source).map(|(at, _)| at)
    }

    /// The waiting client that gets the next slot.
    fn next_source(&self) -> Option<Source> {
        let key = |(source, waiting): (&Source, &VecDeque<Id>)| {
            let first = waiting.front().copied();
            (self.of_network(source.network), self.of_address(*source), first)
        };
        self.waiting.iter().min_by_key(|entry| key(*entry)).map(|(source, _)| *source)
    }

    /// The client whose oldest handshake is ended for one of `for_whom`, and when that may be.
    fn victim(&self, for_whom: Source) -> Option<(Instant, Source)> {
        let candidates = [self.over_address(for_whom), self.over_network(for_whom), self.oldest()];
        candidates.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    fn over_address(&self, for_whom: Source) -> Option<(Instant, Source)> {
        let clients =
            self.slots.len() + self.waiting.keys().filter(|source| !self.slots.contains_key(source)).count();
        let share = (self.limit / clients.max(1)).max(self.limit / LEAST_OF_ADDRESS);
        let (source, slots) = self.slots.iter().max_by_key(|(_, slots)| slots.len())?;
        let is_over = *source != for_whom && slots.len() > share.max(self.of_address(for_whom) + 1);
        is_over.then(|| (slots[0].1 + self.grace / OVER_ADDRESS, *source))
    }

    fn over_network(&self, for_whom: Source) -> Option<(Instant, Source)> {
        let own = self.of_network(for_whom.network);
        let networks = self.networks.len() + usize::from(own == 0);
        let share = (self.limit / networks).max(self.limit / LEAST_OF_NETWORK);
        let (network, taken) = self.networks.iter().max_by_key(|(_, taken)| **taken)?;
        if *network == for_whom.network || *taken <= share.max(own + 1) {
            return None;
        }
        let members = self.slots.iter().filter(|(source, _)| source.network == *network);
        let (source, slots) = members.max_by_key(|(_, slots)| slots.len())?;
        Some((slots[0].1 + self.grace / OVER_NETWORK, *source))
    }

    fn oldest(&self) -> Option<(Instant, Source)> {
        let (source, slots) = self.slots.iter().min_by_key(|(_, slots)| slots[0])?;
        Some((slots[0].1 + self.grace, *source))
    }

    fn of_address(&self, source: Source) -> usize {
        self.slots.get(&source).map_or(0, VecDeque::len)
    }

    fn of_network(&self, network: IpAddr) -> usize {
        self.networks.get(&network).copied().unwrap_or_default()
    }

    fn grant(&mut self, source: Source, now: Instant) -> Option<Action> {
        let Entry::Occupied(mut waiting) = self.waiting.entry(source) else { return None };
        let id = waiting.get_mut().pop_front()?;
        if waiting.get().is_empty() {
            waiting.remove();
        }
        self.queued -= 1;
        self.taken += 1;
        *self.networks.entry(source.network).or_default() += 1;
        self.slots.entry(source).or_default().push_back((id, now));
        Some(Action::Grant(id))
    }

    fn evict_oldest(&mut self, source: Source) -> Option<Action> {
        let (id, _) = self.slots.get_mut(&source)?.pop_front()?;
        self.freed(source);
        Some(Action::Evict(id))
    }

    /// Keeps those that have waited for longest, of the network and address with the most.
    fn refuse_newest(&mut self) -> Option<Action> {
        let mut networks: HashMap<IpAddr, usize> = HashMap::new();
        for (source, waiting) in &self.waiting {
            *networks.entry(source.network).or_default() += waiting.len();
        }
        let most = self.waiting.iter().max_by_key(|(source, waiting)| {
            (networks[&source.network], waiting.len(), waiting.back().copied())
        });
        let (source, id) = most.and_then(|(source, waiting)| Some((*source, *waiting.back()?)))?;
        self.release(source, id);
        Some(Action::Refuse(id))
    }

    /// A slot of a client has become free.
    fn freed(&mut self, source: Source) {
        self.taken -= 1;
        if self.slots.get(&source).is_some_and(VecDeque::is_empty) {
            self.slots.remove(&source);
        }
        if let Entry::Occupied(mut taken) = self.networks.entry(source.network) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests;
