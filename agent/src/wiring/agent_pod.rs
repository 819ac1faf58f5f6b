//! The agent's own pod as a member of the mesh: HBONE in the agent's own namespace, for its metrics and readiness.

use std::sync::Arc;

use isthmus_model::PodRef;
use isthmus_proxy::{AgentPodProxy, BoundListener, ProxyContext};
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::{Sockets, Transparent};

use super::socket_options::apply_socket_options;
use crate::config::agent::AgentConfig;

/// Listens when it is known which pod the agent runs in. Another program on the port (a gateway on the host's network)
/// costs no pod its data plane. Must be called inside the data plane's runtime.
pub(crate) fn start(
    config: &AgentConfig,
    proxy_context: Arc<ProxyContext>,
    drain: Watch,
) -> Option<AgentPodProxy> {
    let place = &config.place;
    let named = [&place.pod_name, &place.pod_namespace, &place.service_account];
    if named.iter().any(|name| name.is_empty()) {
        return None;
    }
    let sockets =
        apply_socket_options(Sockets::host().with_reuse_port(config.sockets.reuse_port), &config.sockets);
    let bound =
        match BoundListener::wildcard(&sockets, proxy_context.config.ports.inbound, Transparent::Never) {
            Ok(bound) => bound,
            Err(error) => {
                tracing::warn!(%error, "the agent's own metrics are not served over mutual TLS");
                return None;
            }
        };
    let pod = PodRef {
        uid: place.pod_name.as_str().into(),
        name: place.pod_name.as_str().into(),
        namespace: place.pod_namespace.as_str().into(),
        service_account: place.service_account.as_str().into(),
    };
    Some(AgentPodProxy::start(proxy_context, pod, bound, sockets, drain))
}
