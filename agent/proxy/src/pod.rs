//! The data plane of one pod: starts its listeners and ends them together with the pod's tunnel pool, connection table
//! and budgets. Does not know how a connection is served, nor where the pod's namespace comes from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::Transport;
use isthmus_identity::PeerIdentity;
use isthmus_model::PodRef;
use isthmus_rt::descriptors::DescriptorShare;
use isthmus_rt::drain::Watch;
use isthmus_rt::fair::Share;
use isthmus_sys::socket::Sockets;

use crate::accept::{Lifecycle, Listeners, Placement};
use crate::context::{PodContext, ProxyContext};
use crate::handover::PodHandover;
use crate::inbound;
use crate::outbound;
use crate::tracker::{ConnectionsSnapshot, OpenConnections};
use crate::types::Direction;

/// The data plane of one pod. Dropping it resets its connections; [`PodProxy::stop`] drains them.
#[derive(Debug)]
pub struct PodProxy {
    ctx: Arc<PodContext>,
    lifecycle: Lifecycle,
}

// === impl PodProxy ===

impl PodProxy {
    /// Serves the pod on these listeners until the process drains or [`Self::stop`] is called. `sockets` opens the
    /// pod's outgoing connections. Must be called inside the runtime of
    /// the data thread that accepts the pod's connections.
    #[must_use]
    pub fn start(
        proxy: Arc<ProxyContext>,
        pod: PodRef,
        listeners: Listeners,
        sockets: Sockets,
        drain: Watch,
    ) -> Self {
        let use_client_source =
            listeners.inbound.is_transparent() && listeners.inbound_plaintext.is_transparent();
        let ctx = Arc::new(PodContext::new(proxy, pod, sockets, use_client_source));
        let lifecycle = Lifecycle::new(ctx.owner(), ctx.share(), ctx.threads(), drain);
        let Listeners { outbound, inbound, inbound_plaintext } = listeners;
        if use_client_source {
            let sockets = ctx.local_sockets().clone();
            lifecycle.spawn("spare sockets", async move { sockets.drop_idle_spares().await });
        }
        lifecycle.spawn("handshake slots", Arc::clone(&ctx).run_handshake_clock());
        lifecycle.spawn("policy changes", Arc::clone(&ctx).recheck_on_changes());
        let mine = Arc::clone(&ctx);
        let beside = Placement::with_tunnels_of(&ctx.owner());
        lifecycle.listen(
            outbound,
            "outbound",
            beside,
            ctx.admission(Direction::Outbound),
            move |accepted, drain| outbound::serve(Arc::clone(&mine), accepted, drain),
        );
        let mine = Arc::clone(&ctx);
        lifecycle.listen(
            inbound_plaintext,
            "inbound plaintext",
            Placement::Here,
            ctx.admission(Direction::Inbound),
            move |accepted, drain| inbound::plaintext::serve(Arc::clone(&mine), accepted, drain),
        );
        let mine = Arc::clone(&ctx);
        lifecycle.listen(
            inbound,
            "inbound",
            Placement::Tunnel,
            ctx.tls_admission(),
            move |accepted, drain| inbound::accept(Arc::clone(&mine), accepted, drain),
        );
        Self { ctx, lifecycle }
    }

    /// Serves a tunnel over a byte stream whose peer was authenticated elsewhere as if it had arrived on the HBONE
    /// port: same policies, connection table and access log. Resolves when its last stream has ended.
    pub async fn serve<S: Transport>(
        &self,
        peer: PeerIdentity,
        source: SocketAddr,
        local: SocketAddr,
        io: S,
    ) {
        if let Some(drain) = self.lifecycle.watch() {
            let serve = inbound::serve(Arc::clone(&self.ctx), peer, source, local, io, drain);
            self.ctx.share().run(serve).await;
        }
    }

    /// The pod's side of a hand-over.
    #[must_use]
    pub fn handover(&self) -> PodHandover {
        PodHandover::new(Arc::clone(&self.ctx), self.lifecycle.carrier())
    }

    /// The pod's share of CPU time, for other work on its behalf (DNS).
    #[must_use]
    pub fn share(&self) -> Arc<Share> {
        self.ctx.share()
    }

    /// The pod's share of descriptors, for other sockets on its behalf (DNS).
    #[must_use]
    pub fn descriptors(&self) -> DescriptorShare {
        self.ctx.descriptors().clone()
    }

    /// The pod.
    #[must_use]
    pub fn pod(&self) -> &PodRef {
        self.ctx.pod()
    }

    /// The open connections, to be iterated over without blocking the data plane.
    #[must_use]
    pub fn open(&self) -> OpenConnections {
        self.ctx.connections().open()
    }

    /// A copy of the open connections.
    #[must_use]
    pub fn connections(&self) -> ConnectionsSnapshot {
        self.ctx.connections().snapshot()
    }

    /// Evaluates the current policies for every open inbound connection and closes those that are denied; returns their
    /// number. The proxy does so by itself when policies change.
    pub async fn recheck(&self) -> usize {
        self.ctx.recheck().await.closed
    }

    /// Closes the listeners, waits up to `deadline` for the open connections, then resets the remaining ones.
    pub async fn stop(&self, deadline: Duration) {
        self.lifecycle.stop(deadline).await;
    }
}
