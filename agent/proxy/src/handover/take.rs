//! Taking a unit out of this process: it is brought to rest on its thread, and encoded.

use std::time::{Duration, Instant};

use isthmus_hbone::TunnelId;
use isthmus_hbone::handover::{self, EncodeError, Item, QuiesceError, TunnelParts};
use isthmus_identity::PeerIdentity;
use isthmus_rt::threads::Thread;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::adopt::{NotAdopted, PreparedUnit, Ready};
use super::wire::{self, MovedConnection, WireError, WireKind};
use super::{PodHandover, Unit, UnitKind};
use crate::context::{AcceptedTunnel, LeftConnection, OpenPair};
use crate::dial::revocable::{Revocable, SessionPeer};
use crate::inbound::InboundTunnel;
use crate::types::PoolKey;

/// A unit at rest. Dropped otherwise than by [`Self::release`] or [`Self::restore`], its connections are reset.
#[derive(Debug)]
pub struct TakenUnit {
    pod: PodHandover,
    thread: Thread,
    kept: Kept,
    items: Vec<Item>,
    connections: usize,
    since: Instant,
}

/// What the encoding does not tell this process of a unit that goes on here.
#[derive(Debug)]
enum Kept {
    Client(SessionPeer),
    Server(PeerIdentity, SessionPeer),
    Pair,
    Retries,
}

/// Why a unit was not taken. It goes on as before, unless the error says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It does not come to rest.
    #[error(transparent)]
    Unsettled(#[from] QuiesceError),
    /// Its session has nothing by which the peer could be proved again. The connections are reset.
    #[error("the tunnel has no mutual TLS")]
    NoPeer,
    /// It cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A connection stopped and its record was not found: a defect. The connections are reset.
    #[error("a connection of the tunnel has left no record")]
    NoRecord,
    /// The pod is stopped meanwhile, or a socket could not be taken from its runtime. The connections are reset.
    #[error("the pod's connections are being closed")]
    Stopped,
}

/// A tunnel that was taken apart, with what is known of its connections.
struct TakenTunnel {
    parts: TunnelParts,
    peer: SessionPeer,
    connections: Vec<(u32, MovedConnection)>,
}

impl PodHandover {
    /// Brings a unit to rest, on its thread. What is under way in it may take `limit`.
    ///
    /// # Errors
    /// When it does not come to rest, or is not of a kind that is handed over.
    pub async fn take(&self, unit: Unit, limit: Duration) -> Result<TakenUnit, NotTaken> {
        let (done, taken) = oneshot::channel();
        let (Unit { thread, kind }, here) = (unit, self.clone());
        self.carrier.spawn_on(thread, "hand-over", async move {
            let taken = match kind {
                UnitKind::Client(key, tunnel) => {
                    let parts = tunnel.take_apart(limit).await;
                    here.client_taken(thread, key, tunnel.id(), parts)
                }
                UnitKind::Server(tunnel) => {
                    let parts = tunnel.control.take_apart(limit).await;
                    here.server_taken(thread, &tunnel, parts)
                }
                UnitKind::Pair(pair) => here.take_pair(thread, pair).await,
                UnitKind::Retries => Ok(here.take_retries(thread)),
            };
            // The receiver is dropped with the process only.
            let _ = done.send(taken);
        });
        taken.await.unwrap_or(Err(NotTaken::Stopped))
    }

    fn client_taken(
        self,
        thread: Thread,
        key: PoolKey,
        id: TunnelId,
        parts: Result<TunnelParts, QuiesceError>,
    ) -> Result<TakenUnit, NotTaken> {
        let TakenTunnel { parts, peer, connections } = self.tunnel_taken(id, parts)?;
        let since = parts.stopped().into_std();
        let head = wire::encode(thread, &wire::Kind::Client(&key, peer.evidence.as_ref()), &connections);
        match handover::encode(parts) {
            Ok(items) => Ok(self.taken(thread, Kept::Client(peer), (head, items), connections.len(), since)),
            Err((parts, error)) => {
                let ready = Ready::Client { key, parts: *parts, peer };
                let connections = connections.into_iter().collect();
                PreparedUnit { pod: self, thread, ready, connections, descriptors: Vec::new() }.run();
                Err(error.into())
            }
        }
    }

    fn server_taken(
        self,
        thread: Thread,
        tunnel: &AcceptedTunnel,
        parts: Result<TunnelParts, QuiesceError>,
    ) -> Result<TakenUnit, NotTaken> {
        let TakenTunnel { parts, peer, connections } = self.tunnel_taken(tunnel.control.id(), parts)?;
        let since = parts.stopped().into_std();
        let AcceptedTunnel { source, local, .. } = *tunnel;
        let kind = wire::Kind::Server { source, local, evidence: peer.evidence.as_ref() };
        let head = wire::encode(thread, &kind, &connections);
        match handover::encode(parts) {
            Ok(items) => {
                let kept = Kept::Server(tunnel.peer.clone(), peer);
                Ok(self.taken(thread, kept, (head, items), connections.len(), since))
            }
            Err((parts, error)) => {
                let of = InboundTunnel { peer: tunnel.peer.clone(), source, local };
                let ready = Ready::Server { of, parts: *parts, peer, settings: None };
                let connections = connections.into_iter().collect();
                PreparedUnit { pod: self, thread, ready, connections, descriptors: Vec::new() }.run();
                Err(error.into())
            }
        }
    }

    async fn take_pair(self, thread: Thread, pair: OpenPair) -> Result<TakenUnit, NotTaken> {
        let since = Instant::now();
        let parts = pair.control.take_apart().await?;
        let left = self.ctx.open_tunnels().take_left_pair(pair.id).ok_or(NotTaken::NoRecord)?;
        let connections = [(0, moved(left))];
        let head = wire::encode(thread, &wire::Kind::Pair { inbound: pair.inbound }, &connections);
        let items = handover::encode_plain(parts)?;
        Ok(self.taken(thread, Kept::Pair, (head, items.into()), 1, since))
    }

    fn take_retries(self, thread: Thread) -> TakenUnit {
        let parts = self.ctx.retry_state().lock().parts(tokio::time::Instant::now());
        let head = wire::encode(thread, &wire::Kind::Retries(&parts), &[]);
        self.taken(thread, Kept::Retries, (head, Vec::new()), 0, Instant::now())
    }

    /// What a tunnel that has come to rest, and its copies, have left.
    fn tunnel_taken(
        &self,
        id: TunnelId,
        parts: Result<TunnelParts, QuiesceError>,
    ) -> Result<TakenTunnel, NotTaken> {
        let table = self.ctx.open_tunnels();
        let mut parts = parts.inspect_err(|_| {
            // Of a tunnel that ended half way: they are logged as drained.
            drop(table.take_all_left(id));
        })?;
        // The copies have stopped, so what they leave is there.
        let of_stream = |stream: u32| {
            let left = table.take_left(id, stream).ok_or(NotTaken::NoRecord)?;
            Ok((stream, moved(left)))
        };
        let connections = parts.streams().map(of_stream).collect::<Result<Vec<_>, NotTaken>>()?;
        let mut peer = None;
        let unwrapped = parts.unwrap_transport(|session: Revocable<TcpStream>| {
            let (tcp, of) = session.into_parts();
            peer = Some(of);
            tcp
        });
        unwrapped.map_err(|_| NotTaken::Stopped)?;
        Ok(TakenTunnel { parts, peer: peer.ok_or(NotTaken::NoPeer)?, connections })
    }

    fn taken(
        self,
        thread: Thread,
        kept: Kept,
        (head, items): (Item, Vec<Item>),
        connections: usize,
        since: Instant,
    ) -> TakenUnit {
        let items = std::iter::once(head).chain(items).collect();
        TakenUnit { pod: self, thread, kept, items, connections, since }
    }
}

fn moved(left: LeftConnection) -> MovedConnection {
    let LeftConnection { record, tracked } = left;
    // Without an entry it is being closed by a change of policy, and the successor closes it.
    MovedConnection { record: record.into_parts(), conn: tracked.connection() }
}

// === impl TakenUnit ===

impl TakenUnit {
    /// The encoding, with descriptors that stay open until the unit is released or restored.
    #[must_use]
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// How many connections it holds.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections
    }

    /// Since when its connections stand still.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Another process runs it: secrets are cleared and descriptors closed, and no peer notices.
    pub fn release(self) {
        self.items.into_iter().for_each(|item| handover::wipe(item.bytes));
    }

    /// It goes on here.
    ///
    /// # Errors
    /// When its own encoding cannot be read, which is a defect; the connections are reset.
    pub fn restore(self) -> Result<(), NotAdopted> {
        let Self { pod, thread, kept, items, .. } = self;
        let mut items = items.into_iter();
        let head = items.next().ok_or(WireError::Field("items"))?;
        let mut unit = wire::decode(&head)?;
        // It has not left.
        unit.connections.values_mut().for_each(|one| one.record.handovers -= 1);
        let ready = match (kept, unit.kind) {
            (Kept::Client(peer), WireKind::Client(key, _)) => {
                Ready::Client { key, parts: handover::decode(items.collect())?, peer }
            }
            (Kept::Server(identity, peer), WireKind::Server { source, local, .. }) => {
                let of = InboundTunnel { peer: identity, source, local };
                Ready::Server { of, parts: handover::decode(items.collect())?, peer, settings: None }
            }
            (Kept::Pair, WireKind::Pair { inbound }) => {
                Ready::Pair { inbound, parts: handover::decode_plain(items.collect())? }
            }
            // A copy: this process knows it still.
            (Kept::Retries, WireKind::Retries(_)) => return Ok(()),
            _ => return Err(WireError::Field("kind").into()),
        };
        PreparedUnit { pod, thread, ready, connections: unit.connections, descriptors: Vec::new() }.run();
        Ok(())
    }
}
