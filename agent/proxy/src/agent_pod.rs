//! HBONE on the agent's own namespace: whoever a policy lets in reads its metrics and its readiness over mutual TLS, and
//! reaches nothing else there.

use std::sync::Arc;
use std::time::Duration;

use isthmus_model::PodRef;
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::Sockets;

use crate::accept::{BoundListener, Lifecycle};
use crate::context::{PodContext, ProxyContext};
use crate::inbound;

/// The agent's own listener. Dropped, it ends at once.
#[derive(Debug)]
pub struct AgentPodProxy(Lifecycle);

impl AgentPodProxy {
    /// Serves the pod that the agent itself runs in until the process drains or [`Self::stop`] is called. Must be called
    /// inside the data plane's runtime.
    #[must_use]
    pub fn start(
        proxy: Arc<ProxyContext>,
        pod: PodRef,
        inbound: BoundListener,
        sockets: Sockets,
        drain: Watch,
    ) -> Self {
        let only = proxy.config.ports.served_to_the_mesh();
        let ctx = Arc::new(PodContext::new(proxy, pod, sockets, false).with_only(&only));
        let running = Lifecycle::new(ctx.owner(), ctx.share(), drain);
        running.spawn("policy changes", Arc::clone(&ctx).recheck_on_changes());
        running.listen(inbound, "own inbound", Some(ctx.handshakes()), move |accepted, drain| {
            inbound::accept(Arc::clone(&ctx), accepted, drain)
        });
        Self(running)
    }

    /// Takes no new connections, waits at most `deadline` for the open ones, then cuts what is left.
    pub async fn stop(&self, deadline: Duration) {
        self.0.stop(deadline).await;
    }
}
