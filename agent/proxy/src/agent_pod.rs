//! The HBONE listener of the pod that the agent itself runs in: peers that policy allows scrape metrics and probe
//! readiness over mutual TLS. No other port of the agent's namespace can be reached through it.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::PodRef;
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::Sockets;

use crate::accept::{BoundListener, Lifecycle, Placement};
use crate::context::{PodContext, ProxyContext};
use crate::inbound;

/// The agent pod's listener. Dropping it resets its connections.
#[derive(Debug)]
pub struct AgentPodProxy(Lifecycle);

impl AgentPodProxy {
    /// Serves the pod that the agent itself runs in until the process drains or [`Self::stop`] is called. Must be
    /// called inside the runtime of a data thread.
    #[must_use]
    pub fn start(
        proxy: Arc<ProxyContext>,
        pod: PodRef,
        inbound: BoundListener,
        sockets: Sockets,
        drain: Watch,
    ) -> Self {
        let allowed = proxy.config.ports.served_to_the_mesh();
        let ctx = Arc::new(PodContext::new(proxy, pod, sockets, false).with_allowed_ports(&allowed));
        let lifecycle = Lifecycle::new(ctx.owner(), ctx.share(), ctx.threads(), drain);
        lifecycle.spawn("handshake slots", Arc::clone(&ctx).run_handshake_clock());
        lifecycle.spawn("policy changes", Arc::clone(&ctx).recheck_on_changes());
        lifecycle.listen(
            inbound,
            "agent inbound",
            Placement::Here,
            ctx.tls_admission(),
            move |accepted, drain| inbound::accept(Arc::clone(&ctx), accepted, drain),
        );
        Self(lifecycle)
    }

    /// Closes the listener, waits up to `deadline` for the open connections, then resets the remaining ones.
    pub async fn stop(&self, deadline: Duration) {
        self.0.stop(deadline).await;
    }
}
