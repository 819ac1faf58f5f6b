//! The connections of a pod that can be handed over, by tunnel or one by one, and the records of those that were taken apart.
//! Decides nothing about a hand-over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use isthmus_hbone::TunnelId;
use isthmus_hbone::copy::PlainControl;
use isthmus_hbone::handover::Control;
use isthmus_identity::PeerIdentity;
use isthmus_rt::threads::Thread;

use crate::telemetry::Record;
use crate::tracker::Tracked;

/// Tunnels that were accepted, connections without a tunnel, and what was left behind by copies that have stopped.
#[derive(Debug, Default)]
pub(crate) struct OpenTunnels(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    accepted: HashMap<u64, AcceptedTunnel>,
    pairs: HashMap<u64, OpenPair>,
    left: HashMap<(TunnelId, u32), LeftConnection>,
    left_pairs: HashMap<u64, LeftConnection>,
}

/// A tunnel that a peer opened.
#[derive(Debug, Clone)]
pub(crate) struct AcceptedTunnel {
    pub(crate) control: Control,
    pub(crate) peer: PeerIdentity,
    pub(crate) source: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) thread: Thread,
}

/// A connection without a tunnel: two sockets.
#[derive(Debug, Clone)]
pub(crate) struct OpenPair {
    pub(crate) id: u64,
    pub(crate) control: PlainControl,
    /// To the pod.
    pub(crate) inbound: bool,
    pub(crate) thread: Thread,
}

/// A connection whose copy has stopped because its tunnel is taken apart. Dropped, it is logged as drained.
#[derive(Debug)]
pub(crate) struct LeftConnection {
    pub(crate) record: Record,
    pub(crate) tracked: Tracked,
}

/// A tunnel's entry; removed when dropped.
#[derive(Debug)]
pub(crate) struct Registered<'a> {
    tunnels: &'a OpenTunnels,
    id: u64,
}

/// A pair's entry; removed when dropped.
#[derive(Debug)]
pub(crate) struct RegisteredPair<'a> {
    tunnels: &'a OpenTunnels,
    pub(super) id: u64,
    control: PlainControl,
}

// === impl OpenTunnels ===

impl OpenTunnels {
    /// Enters a connection without a tunnel, whose copy runs on this thread.
    pub(crate) fn register_pair(&self, inbound: bool) -> RegisteredPair<'_> {
        let control = PlainControl::default();
        let mut table = self.lock();
        table.next += 1;
        let id = table.next;
        let pair = OpenPair { id, control: control.clone(), inbound, thread: Thread::current() };
        table.pairs.insert(id, pair);
        RegisteredPair { tunnels: self, id, control }
    }

    /// The connections without a tunnel that are open.
    pub(crate) fn pairs(&self) -> Vec<OpenPair> {
        self.lock().pairs.values().cloned().collect()
    }

    /// Leaves a connection without a tunnel behind.
    pub(super) fn leave_pair(&self, id: u64, connection: LeftConnection) {
        self.lock().left_pairs.insert(id, connection);
    }

    /// A connection without a tunnel that was left behind by its copy.
    pub(crate) fn take_left_pair(&self, id: u64) -> Option<LeftConnection> {
        self.lock().left_pairs.remove(&id)
    }

    /// Enters a tunnel that was accepted.
    pub(crate) fn register(&self, tunnel: AcceptedTunnel) -> Registered<'_> {
        let mut table = self.lock();
        table.next += 1;
        let id = table.next;
        table.accepted.insert(id, tunnel);
        Registered { tunnels: self, id }
    }

    /// The tunnels that were accepted and are open.
    pub(crate) fn accepted(&self) -> Vec<AcceptedTunnel> {
        self.lock().accepted.values().cloned().collect()
    }

    /// Leaves a connection behind, by its stream.
    pub(super) fn leave(&self, tunnel: TunnelId, stream: u32, connection: LeftConnection) {
        self.lock().left.insert((tunnel, stream), connection);
    }

    /// A connection that was left behind by its copy.
    pub(crate) fn take_left(&self, tunnel: TunnelId, stream: u32) -> Option<LeftConnection> {
        self.lock().left.remove(&(tunnel, stream))
    }

    /// All connections of a tunnel that were left behind.
    pub(crate) fn take_all_left(&self, tunnel: TunnelId) -> Vec<LeftConnection> {
        let mut table = self.lock();
        let of_tunnel: Vec<_> = table.left.keys().filter(|(of, _)| *of == tunnel).copied().collect();
        of_tunnel.iter().filter_map(|at| table.left.remove(at)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A poisoned lock is still consistent: no code panics between two related changes.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RegisteredPair<'_> {
    /// Stops its copy.
    pub(crate) fn control(&self) -> &PlainControl {
        &self.control
    }
}

impl Drop for RegisteredPair<'_> {
    fn drop(&mut self) {
        self.tunnels.lock().pairs.remove(&self.id);
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.tunnels.lock().accepted.remove(&self.id);
    }
}
