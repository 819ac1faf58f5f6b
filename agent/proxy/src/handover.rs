//! The connections of a pod on their way between two processes: [`PodHandover::units`] lists what can be handed over,
//! [`PodHandover::take`] brings one unit to rest and encodes it, [`PodHandover::prepare`] makes one ready that was received.
//!
//! A unit is a tunnel with all of its streams, or a connection without a tunnel. It must not know how units travel, nor when
//! a hand-over begins.
//!
//! ```text
//! take → adopt → wire
//! ```

mod adopt;
mod take;
mod wire;

use std::fmt;
use std::sync::Arc;

use isthmus_hbone::client::Tunnel;
use isthmus_rt::threads::Thread;

pub use self::adopt::{NotAdopted, PreparedUnit};
pub use self::take::{NotTaken, TakenUnit};
pub use self::wire::WireError;
use crate::accept::Carrier;
use crate::context::{AcceptedTunnel, OpenPair, PodContext};
use crate::types::PoolKey;

/// A pod's side of a hand-over. It keeps the pod's tasks running, so it is not to be kept after the pod was stopped.
#[derive(Clone)]
pub struct PodHandover {
    ctx: Arc<PodContext>,
    carrier: Carrier,
}

/// Something that can be handed over.
#[derive(Debug)]
pub struct Unit {
    thread: Thread,
    kind: UnitKind,
}

#[derive(Debug)]
enum UnitKind {
    /// A tunnel that was dialled for the pod.
    Client(PoolKey, Tunnel),
    /// A tunnel that a peer has opened to it.
    Server(AcceptedTunnel),
    /// A connection without a tunnel.
    Pair(OpenPair),
    /// What the pod has learnt of its upstreams.
    Retries,
}

impl PodHandover {
    pub(crate) fn new(ctx: Arc<PodContext>, carrier: Carrier) -> Self {
        Self { ctx, carrier }
    }

    /// What the pod has learnt of its upstreams: a unit without connections, to be handed over first.
    #[must_use]
    pub fn lessons(&self) -> Unit {
        Unit { thread: Thread::current(), kind: UnitKind::Retries }
    }

    /// The connections that can be handed over now.
    #[must_use]
    pub fn units(&self) -> Vec<Unit> {
        let pooled = self.ctx.pooled_tunnels().into_iter();
        let clients =
            pooled.map(|(thread, key, tunnel)| Unit { thread, kind: UnitKind::Client(key, tunnel) });
        let accepted = self.ctx.open_tunnels().accepted().into_iter();
        let servers = accepted.map(|tunnel| Unit { thread: tunnel.thread, kind: UnitKind::Server(tunnel) });
        let pairs = self.ctx.open_tunnels().pairs().into_iter();
        let pairs = pairs.map(|pair| Unit { thread: pair.thread, kind: UnitKind::Pair(pair) });
        clients.chain(servers).chain(pairs).collect()
    }
}

impl Unit {
    /// How many connections it has at this moment.
    #[must_use]
    pub fn connections(&self) -> usize {
        match &self.kind {
            UnitKind::Client(_, tunnel) => tunnel.active_streams(),
            UnitKind::Server(tunnel) => tunnel.control.streams(),
            UnitKind::Pair(_) => 1,
            UnitKind::Retries => 0,
        }
    }
}

impl fmt::Debug for PodHandover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodHandover").field("pod", self.ctx.pod()).finish_non_exhaustive()
    }
}
