//! One pod's share of the data plane: its listeners, tasks, pool, connection table and budgets live and die together.

use crate::tracker::OpenConnections;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::Transport;
use isthmus_identity::PeerIdentity;
use isthmus_model::PodRef;
use isthmus_rt::drain::Watch;
use isthmus_rt::fair::Share;
use isthmus_sys::socket::Sockets;

use crate::accept::{Lifecycle, Listeners};
use crate::context::{PodContext, ProxyContext};
use crate::inbound;
use crate::outbound;
use crate::tracker::ConnectionsSnapshot;

/// The data plane of one pod. Dropped, it ends at once; see [`PodProxy::stop`] for a kinder way.
#[derive(Debug)]
pub struct PodProxy {
    ctx: Arc<PodContext>,
    running: Lifecycle,
}

// === impl PodProxy ===

impl PodProxy {
    /// Serves the pod on these listeners until the process drains or [`Self::stop`] is called. `sockets` makes the
    /// pod's outgoing connections. Must be called inside the data plane's runtime.
    #[must_use]
    pub fn start(
        proxy: Arc<ProxyContext>,
        pod: PodRef,
        listeners: Listeners,
        sockets: Sockets,
        drain: Watch,
    ) -> Self {
        let spoof = listeners.inbound.is_transparent() && listeners.inbound_plaintext.is_transparent();
        let ctx = Arc::new(PodContext::new(proxy, pod, sockets, spoof));
        let running = Lifecycle::new(ctx.owner(), ctx.share(), drain);
        let Listeners { outbound, inbound, inbound_plaintext } = listeners;
        running.spawn("policy changes", Arc::clone(&ctx).recheck_on_changes());
        let mine = Arc::clone(&ctx);
        running.listen(outbound, "outbound", None, move |accepted, drain| {
            outbound::serve(Arc::clone(&mine), accepted, drain)
        });
        let mine = Arc::clone(&ctx);
        running.listen(inbound_plaintext, "inbound plaintext", None, move |accepted, drain| {
            inbound::plaintext::serve(Arc::clone(&mine), accepted, drain)
        });
        let mine = Arc::clone(&ctx);
        running.listen(inbound, "inbound", Some(ctx.handshakes()), move |accepted, drain| {
            inbound::accept(Arc::clone(&mine), accepted, drain)
        });
        Self { ctx, running }
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
            let serve = inbound::serve(Arc::clone(&self.ctx), peer, source, local, io, drain);
            self.ctx.share().run(serve).await;
        }
    }

    /// The pod's share of CPU time, for what else runs on its behalf.
    #[must_use]
    pub fn share(&self) -> Arc<Share> {
        self.ctx.share()
    }

    /// Which pod it is.
    #[must_use]
    pub fn pod(&self) -> &PodRef {
        self.ctx.pod()
    }

    /// What is open, to be looked through without holding up anybody.
    #[must_use]
    pub fn open(&self) -> OpenConnections {
        self.ctx.connections().open()
    }

    /// What is open now.
    #[must_use]
    pub fn connections(&self) -> ConnectionsSnapshot {
        self.ctx.connections().snapshot()
    }

    /// Holds every open inbound connection against the policies as they are now and closes what they refuse. This also
    /// happens by itself when the mesh's state changes. Answers how many were told to close.
    pub async fn recheck(&self) -> usize {
        self.ctx.recheck().await.refused
    }

    /// Takes no new connections, waits at most `deadline` for the open ones, then cuts what is left.
    pub async fn stop(&self, deadline: Duration) {
        self.running.stop(deadline).await;
    }
}
