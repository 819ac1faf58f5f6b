//! HBONE for the agent's own pod: serves its metrics and readiness to mesh clients in the agent's own network namespace.

use std::sync::Arc;

use isthmus_model::PodRef;
use isthmus_proxy::{AgentPodProxy, BoundListener, ProxyContext};
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::{Sockets, Transparent};

use super::socket_options::apply_socket_options;
use crate::config::agent::AgentConfig;

/// Starts the listener if the agent's pod is known (`POD_NAME`, `POD_NAMESPACE`, `SERVICE_ACCOUNT`). A port in use, for
/// example by a gateway in the host's network, only warns: pods do not depend on it. Must be called inside the data
/// plane's runtime.
pub(crate) fn start(
    config: &AgentConfig,
    proxy_context: Arc<ProxyContext>,
    drain: Watch,
) -> Option<AgentPodProxy> {
    let local_info = &config.local_info;
    let named = [&local_info.pod_name, &local_info.pod_namespace, &local_info.service_account];
    if named.iter().any(|name| name.is_empty()) {
        return None;
    }
    let sockets =
        apply_socket_options(Sockets::host().with_reuse_port(config.sockets.reuse_port), &config.sockets);
    let bound = match BoundListener::wildcard(
        &sockets,
        proxy_context.config.ports.inbound,
        Transparent::Never,
    ) {
        Ok(bound) => bound,
        Err(error) => {
            tracing::warn!(%error, "cannot listen for HBONE in the agent's own namespace, its metrics are not served over mutual TLS");
            return None;
        }
    };
    let pod = PodRef {
        uid: local_info.pod_name.as_str().into(),
        name: local_info.pod_name.as_str().into(),
        namespace: local_info.pod_namespace.as_str().into(),
        service_account: local_info.service_account.as_str().into(),
    };
    Some(AgentPodProxy::start(proxy_context, pod, bound, sockets, drain))
}
