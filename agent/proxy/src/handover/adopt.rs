//! Taking a unit over: it is decoded, its peer is proved once more, and then it runs.

use std::collections::HashMap;
use std::sync::Arc;

use isthmus_hbone::copy::PlainParts;
use isthmus_hbone::handover::{
    self, DecodeError, Item, ResumeError, Role, TunnelParts, resume_client_over, resume_server_over,
};
use isthmus_hbone::{Settings, TooManyTunnels};
use isthmus_identity::PeerEvidence;
use isthmus_rt::descriptors::DescriptorPermit;
use isthmus_rt::threads::Thread;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::PodHandover;
use super::wire::{self, MovedConnection, WireError, WireKind};
use crate::accept::Active;
use crate::dial::revocable::{Revocable, SessionPeer};
use crate::error::Error;
use crate::inbound::{self, InboundTunnel, MovedStream};
use crate::outbound;
use crate::retry::RetryParts;
use crate::telemetry::Record;
use crate::tracker::Connection;
use crate::types::{PoolKey, Reporter};

/// A unit that can run. Dropped, its descriptors are closed and nothing else happens.
#[derive(Debug)]
pub struct PreparedUnit {
    pub(super) pod: PodHandover,
    pub(super) thread: Thread,
    pub(super) ready: Ready,
    pub(super) connections: HashMap<u32, MovedConnection>,
    /// One for each socket; empty for a unit that goes on where it was, which is drained soon.
    pub(super) descriptors: Vec<DescriptorPermit>,
}

/// What runs.
#[derive(Debug)]
pub(super) enum Ready {
    Client {
        key: PoolKey,
        parts: TunnelParts,
        peer: SessionPeer,
    },
    Server {
        of: InboundTunnel,
        parts: TunnelParts,
        peer: SessionPeer,
        /// With its place among the tunnels of its peer; `None` for one that goes on where it was.
        settings: Option<Settings>,
    },
    Pair {
        inbound: bool,
        parts: PlainParts,
    },
    Retries(RetryParts),
}

/// Why a unit is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum NotAdopted {
    /// What is known of its connections cannot be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The tunnel cannot be read.
    #[error(transparent)]
    Tunnel(#[from] DecodeError),
    /// The peer would not be accepted here.
    #[error("the tunnel's peer is not accepted here: {0}")]
    Peer(#[source] rustls::Error),
    /// The pod cannot serve it: its workload or certificate is not known yet.
    #[error("the pod cannot take it over: {0}")]
    Pod(#[from] Error),
    /// The tunnel is of another identity than the pod's.
    #[error("the tunnel is not of the pod's identity")]
    Identity,
    /// The peer has as many tunnels as it may have.
    #[error(transparent)]
    TooMany(#[from] TooManyTunnels),
}

impl PodHandover {
    /// Makes a unit ready that another process has taken, without reading or writing any of its sockets.
    ///
    /// # Errors
    /// When it cannot be read, or its peer is not accepted here. The sockets are left as they are.
    pub async fn prepare(&self, items: Vec<Item>) -> Result<PreparedUnit, NotAdopted> {
        for socket in items.iter().filter_map(|item| item.socket.as_ref()) {
            self.ctx.sockets().keep_alive(socket);
        }
        let sockets = items.iter().filter(|item| item.socket.is_some());
        let descriptors = sockets.map(|_| self.ctx.descriptor()).collect::<Result<Vec<_>, _>>()?;
        let mut items = items.into_iter();
        let head = items.next().ok_or(WireError::Field("items"))?;
        let unit = wire::decode(&head)?;
        let (items, connections): (Vec<Item>, _) = (items.collect(), unit.connections);
        let ready = match unit.kind {
            WireKind::Client(key, evidence) => {
                let parts = tunnel(items, Role::Client, &connections)?;
                self.ready_client(key, evidence, parts).await?
            }
            WireKind::Server { source, local, evidence } => {
                let parts = tunnel(items, Role::Server, &connections)?;
                let certificate = self.ctx.certificate(&self.ctx.workload().await?.identity()).await?;
                let (peer, watch) = certificate.readmit(&evidence, &[]).map_err(NotAdopted::Peer)?;
                let settings = Some(self.ctx.settings_for(peer.id(), source.ip())?);
                let peer_kept = SessionPeer { watch, evidence: Some(evidence) };
                Ready::Server { of: InboundTunnel { peer, source, local }, parts, peer: peer_kept, settings }
            }
            WireKind::Pair { inbound } => {
                if connections.len() != 1 {
                    return Err(WireError::Field("connections").into());
                }
                Ready::Pair { inbound, parts: handover::decode_plain(items)? }
            }
            WireKind::Retries(parts) => Ready::Retries(parts),
        };
        let threads = self.ctx.threads();
        let thread = threads.iter().nth(unit.thread % threads.count()).unwrap_or_else(Thread::current);
        Ok(PreparedUnit { pod: self.clone(), thread, ready, connections, descriptors })
    }

    async fn ready_client(
        &self,
        key: PoolKey,
        evidence: PeerEvidence,
        parts: TunnelParts,
    ) -> Result<Ready, NotAdopted> {
        let identity = self.ctx.workload().await?.identity();
        if key.source != identity {
            return Err(NotAdopted::Identity);
        }
        let certificate = self.ctx.certificate(&identity).await?;
        let proved = certificate.readmit(&evidence, &key.destinations);
        let (_, watch) = proved.map_err(NotAdopted::Peer)?;
        Ok(Ready::Client { key, parts, peer: SessionPeer { watch, evidence: Some(evidence) } })
    }
}

/// The tunnel of a unit, whose streams must be those that the unit's description names.
fn tunnel(
    items: Vec<Item>,
    role: Role,
    connections: &HashMap<u32, MovedConnection>,
) -> Result<TunnelParts, NotAdopted> {
    let parts = handover::decode(items)?;
    let all_known = parts.streams().all(|stream| connections.contains_key(&stream));
    if !all_known || parts.streams().count() != connections.len() {
        return Err(WireError::Field("connections").into());
    }
    if parts.role() == role { Ok(parts) } else { Err(WireError::Field("kind").into()) }
}

/// A tunnel's transport with the permit of its socket.
fn counted(io: Revocable<TcpStream>, descriptors: &mut Vec<DescriptorPermit>) -> Revocable<TcpStream> {
    match descriptors.pop() {
        Some(descriptor) => io.with_descriptor(descriptor),
        None => io,
    }
}

// === impl PreparedUnit ===

impl PreparedUnit {
    /// How many connections it holds.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// It goes on here, on the thread that it had.
    pub fn run(self) {
        let Some(active) = self.pod.carrier.active() else {
            tracing::warn!(pod = %self.pod.ctx.name(), "connections came while the pod is stopped, they are reset");
            return;
        };
        let (carrier, thread) = (self.pod.carrier.clone(), self.thread);
        carrier.spawn_on(thread, "taken over", self.resume(active));
    }

    async fn resume(self, active: Active) {
        let Self { pod, ready, connections, descriptors, .. } = self;
        let name = pod.ctx.name().clone();
        let resumed = match ready {
            Ready::Client { key, parts, peer } => {
                pod.client(&key, (parts, peer), connections, descriptors, &active)
            }
            Ready::Server { of, parts, peer, settings } => {
                let of_peer = || pod.ctx.settings_for(of.peer.id(), of.source.ip()).ok();
                let settings = settings.or_else(of_peer).unwrap_or_else(|| pod.ctx.settings().clone());
                pod.server(of, (parts, peer, settings), connections, descriptors, active).await
            }
            Ready::Pair { inbound, parts } => {
                pod.pair(inbound, parts, connections, active).await;
                drop(descriptors);
                Ok(())
            }
            Ready::Retries(parts) => {
                pod.ctx.retry_state().lock().merge(parts, Instant::now());
                Ok(())
            }
        };
        if let Err(error) = resumed {
            tracing::warn!(pod = %name, %error, "a tunnel cannot go on after its hand-over, its connections are reset");
        }
    }
}

impl PodHandover {
    fn client(
        self,
        key: &PoolKey,
        (parts, peer): (TunnelParts, SessionPeer),
        mut connections: HashMap<u32, MovedConnection>,
        mut descriptors: Vec<DescriptorPermit>,
        active: &Active,
    ) -> Result<(), ResumeError> {
        let Self { ctx, carrier } = &self;
        let (tcp, parts) = parts.take_socket()?;
        let io = Revocable::<TcpStream>::new(tcp, peer, &ctx.proxy().metrics, ctx.reporter());
        let io = counted(io, &mut descriptors);
        let (tunnel, copies) = resume_client_over(io, parts, ctx.settings(), ctx.tunnels())?;
        for copy in copies {
            let Some((record, conn)) = self.known(&mut connections, copy.stream()) else { continue };
            let tracked = ctx.connections().outbound(conn);
            let (ctx, active) = (Arc::clone(ctx), active.clone());
            let descriptor = descriptors.pop();
            carrier.spawn("outbound", async move {
                let drain = active.own.clone();
                outbound::resume(ctx, copy, record, tracked, drain).await;
                drop((descriptor, active));
            });
        }
        // Not one that only waits for its last stream.
        if tunnel.is_alive() {
            ctx.pool().insert(key, &tunnel);
        }
        Ok(())
    }

    async fn server(
        self,
        of: InboundTunnel,
        (parts, peer, settings): (TunnelParts, SessionPeer, Settings),
        mut connections: HashMap<u32, MovedConnection>,
        mut descriptors: Vec<DescriptorPermit>,
        active: Active,
    ) -> Result<(), ResumeError> {
        let (tcp, parts) = parts.take_socket()?;
        let metrics = &self.ctx.proxy().metrics;
        let io = Revocable::<TcpStream>::new(tcp, peer, metrics, Reporter::Destination);
        let io = counted(io, &mut descriptors);
        let (server, copies) = resume_server_over(io, parts, &settings)?;
        let mut moved = Vec::new();
        for copy in copies {
            let Some((record, conn)) = self.known(&mut connections, copy.stream()) else { continue };
            moved.push(MovedStream { copy, record, conn, descriptor: descriptors.pop() });
        }
        let threads = self.ctx.threads();
        let occupancy = threads.occupy(Thread::current());
        inbound::resume(self.ctx, of, server, moved, active.own.clone()).await;
        drop((occupancy, active));
        Ok(())
    }

    async fn pair(
        self,
        inbound: bool,
        parts: PlainParts,
        mut connections: HashMap<u32, MovedConnection>,
        active: Active,
    ) {
        let only = connections.keys().next().copied();
        let Some((record, conn)) = only.and_then(|only| self.known(&mut connections, only)) else { return };
        let drain = active.own.clone();
        if inbound {
            inbound::plaintext::resume(self.ctx, parts, record, conn, drain).await;
        } else {
            let tracked = self.ctx.connections().outbound(conn);
            outbound::resume_plain(self.ctx, parts, record, tracked, drain).await;
        }
        drop(active);
    }

    /// The record and the entry of a connection; `None` for one that a change of policy was closing, which is reset.
    fn known(
        &self,
        connections: &mut HashMap<u32, MovedConnection>,
        stream: u32,
    ) -> Option<(Record, Connection)> {
        let MovedConnection { record, conn } = connections.remove(&stream)?;
        let record = Record::resume(Arc::clone(&self.ctx.proxy().metrics), record);
        Some((record, conn?))
    }
}
