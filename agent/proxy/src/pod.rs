//! One pod's share of the data plane: its listeners, tasks, pool, connection table and budgets live and die together.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::Transport;
use isthmus_identity::PeerIdentity;
use isthmus_model::{Namespace, PodUid, ServiceAccount, Text};
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::Sockets;

use crate::conns::{ConnectionsSnapshot, Open};
use crate::listener::Listeners;
use crate::running::Running;
use crate::scope::Scope;
use crate::world::World;
use crate::{inbound, outbound, passthrough};

/// Which pod it is, as whoever enrolled it knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// Its UID.
    pub uid: PodUid,
    /// Its name.
    pub name: Text,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
}

/// A pod as error texts name it: `<service account>.<namespace> (<name>)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName(Text);

/// The data plane of one pod. Dropped, it ends at once; see [`PodProxy::stop`] for a kinder way.
#[derive(Debug)]
pub struct PodProxy {
    scope: Arc<Scope>,
    running: Running,
}

// === impl PodName ===

impl From<&PodInfo> for PodName {
    fn from(pod: &PodInfo) -> Self {
        Self(format!("{}.{} ({})", pod.service_account, pod.namespace, pod.name).into())
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl PodProxy ===

impl PodProxy {
    /// Serves the pod on these listeners until the process drains or [`Self::stop`] is called. `sockets` makes the
    /// pod's outgoing connections. Must be called inside the data plane's runtime.
    #[must_use]
    pub fn start(
        world: Arc<World>,
        pod: PodInfo,
        listeners: Listeners,
        sockets: Sockets,
        drain: Watch,
    ) -> Self {
        let spoof = listeners.inbound.is_transparent() && listeners.inbound_plaintext.is_transparent();
        let scope = Arc::new(Scope::new(world, pod, sockets, spoof));
        let running = Running::new(scope.owner(), scope.share(), drain);
        let Listeners { outbound, inbound, inbound_plaintext } = listeners;
        running.spawn("policy changes", Arc::clone(&scope).recheck_on_changes());
        let mine = Arc::clone(&scope);
        running.listen(outbound, "outbound", None, move |accepted, drain| {
            outbound::serve(Arc::clone(&mine), accepted, drain)
        });
        let mine = Arc::clone(&scope);
        running.listen(inbound_plaintext, "inbound plaintext", None, move |accepted, drain| {
            passthrough::serve(Arc::clone(&mine), accepted, drain)
        });
        let mine = Arc::clone(&scope);
        running.listen(inbound, "inbound", Some(scope.handshakes()), move |accepted, drain| {
            inbound::accept(Arc::clone(&mine), accepted, drain)
        });
        Self { scope, running }
    }

    /// Serves a byte stream whose peer was proven elsewhere as if it had arrived on the HBONE port: the same policy,
    /// connection table and log. Resolves when its last tunnelled connection has ended.
    pub async fn serve<S: Transport>(
        &self,
        peer: PeerIdentity,
        source: SocketAddr,
        local: SocketAddr,
        io: S,
    ) {
        // Once stopping, nothing new is taken.
        if let Some(drain) = self.running.watch() {
            inbound::serve(Arc::clone(&self.scope), peer, source, local, io, drain).await;
        }
    }

    /// Which pod it is.
    #[must_use]
    pub fn pod(&self) -> &PodInfo {
        self.scope.pod()
    }

    /// What is open, to be looked through without holding up anybody.
    #[must_use]
    pub fn open(&self) -> Open {
        self.scope.connections().open()
    }

    /// What is open now.
    #[must_use]
    pub fn connections(&self) -> ConnectionsSnapshot {
        self.scope.connections().snapshot()
    }

    /// Holds every open inbound connection against the policies as they are now and closes what they refuse. This also
    /// happens by itself when the mesh's state changes. Answers how many were told to close.
    pub async fn recheck(&self) -> usize {
        self.scope.recheck().await.refused
    }

    /// Takes no new connections, waits at most `deadline` for the open ones, then cuts what is left.
    pub async fn stop(&self, deadline: Duration) {
        self.running.stop(deadline).await;
    }
}
