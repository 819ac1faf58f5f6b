//! Settings → [`ProxyContext`], what all pods of the process share.

use std::sync::Arc;

use isthmus_hbone::Settings;
use isthmus_identity::Manager;
use isthmus_proxy::{Config, ProxyContext};
use isthmus_rt::fair::FairScheduler;
use isthmus_rt::metrics::Registry;
use isthmus_state::{Options, State};
use isthmus_sys::socket::Transparent;

use super::host_resolver::SystemResolver;
use crate::config::agent::{AgentConfig, TunnelConfig};

/// An empty mesh, seen from where we are.
pub(crate) fn state(config: &AgentConfig) -> State {
    let place = &config.place;
    State::new(Options {
        own_network: place.network.clone(),
        own_cluster: place.cluster.clone(),
        own_node: place.node.clone(),
        ports: config.ports,
        root_namespace: place.root_namespace.clone(),
        loud_policies: place.loud_policies,
    })
}

/// The context of the data plane.
pub(crate) fn proxy_context(
    config: &AgentConfig,
    state: State,
    certs: Manager,
    registry: &Registry,
) -> Arc<ProxyContext> {
    Arc::new(ProxyContext {
        state,
        certs: Arc::new(certs),
        host_resolver: Arc::new(SystemResolver::new(config)),
        network: config.place.network.clone(),
        cluster_id: config.place.cluster.clone(),
        settings: settings(&config.tunnel),
        config: proxy_config(config),
        metrics: isthmus_proxy::Metrics::register(registry),
        scheduler: FairScheduler::default(),
    })
}

/// Settings of the data plane.
pub(crate) fn proxy_config(config: &AgentConfig) -> Config {
    Config {
        ports: config.ports,
        original_source: match config.sockets.original_source {
            None => Transparent::BestEffort,
            Some(true) => Transparent::Required,
            Some(false) => Transparent::Never,
        },
        baggage: config.response_baggage,
        pool_idle: config.tunnel.idle,
        ..Config::default()
    }
}

/// A stream window that was set alone takes the connection's along, so that stalled streams still cannot stop others.
pub(crate) fn settings(tunnel: &TunnelConfig) -> Settings {
    let default = Settings::default();
    let streams = usize::from(tunnel.max_streams).max(1);
    let stream_window = tunnel.stream_window.unwrap_or(default.stream_window);
    let all = stream_window
        .saturating_mul(u32::try_from(streams).unwrap_or(u32::MAX))
        .min(i32::MAX.cast_unsigned());
    let connection_window = tunnel.connection_window.unwrap_or(all);
    Settings {
        stream_window,
        connection_window,
        frame_size: tunnel.frame_size.unwrap_or(default.frame_size),
        client_max_streams: streams,
        data_frame_budget: connection_window as usize,
        ..default
    }
}
