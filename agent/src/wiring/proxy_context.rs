//! Builds the state and the [`ProxyContext`] that all pods share from the settings.

use std::sync::Arc;

use isthmus_hbone::{MemoryBudget, Settings};
use isthmus_identity::Manager;
use isthmus_proxy::{Config, ProxyContext};
use isthmus_rt::descriptors::DescriptorBudget;
use isthmus_rt::fair::FairScheduler;
use isthmus_rt::metrics::Registry;
use isthmus_rt::threads::Threads;
use isthmus_state::{Options, State};
use isthmus_sys::socket::Transparent;

use super::host_resolver::SystemResolver;
use crate::config::agent::{AgentConfig, DescriptorConfig, TunnelConfig};

/// An empty state for this node.
pub(crate) fn state(config: &AgentConfig) -> State {
    let local_info = &config.local_info;
    State::new(Options {
        own_network: local_info.network.clone(),
        own_cluster: local_info.cluster.clone(),
        own_node: local_info.node.clone(),
        ports: config.ports,
        root_namespace: local_info.root_namespace.clone(),
        log_dry_run_at_info: local_info.log_dry_run_at_info,
    })
}

/// The context that all pods share.
pub(crate) fn proxy_context(
    config: &AgentConfig,
    state: State,
    certs: Manager,
    threads: &Threads,
    registry: &Registry,
) -> Arc<ProxyContext> {
    let (settings, proxy_config) = (settings(&config.tunnel), proxy_config(config));
    isthmus_proxy::register_memory(registry, &settings.memory);
    isthmus_proxy::register_descriptors(registry, &proxy_config.descriptors);
    Arc::new(ProxyContext {
        state,
        certs: Arc::new(certs),
        host_resolver: Arc::new(SystemResolver::new(config)),
        network: config.local_info.network.clone(),
        cluster_id: config.local_info.cluster.clone(),
        settings,
        config: proxy_config,
        metrics: isthmus_proxy::Metrics::register(registry),
        threads: threads.clone(),
        scheduler: FairScheduler::new(threads),
    })
}

fn bytes(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn descriptors(config: DescriptorConfig) -> DescriptorBudget {
    let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    if config.shared {
        DescriptorBudget::new(number(config.process), number(config.pod))
    } else {
        DescriptorBudget::undivided(number(config.process))
    }
}

/// Settings of the proxy.
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
        pod_memory: bytes(config.tunnel.memory.pod),
        descriptors: descriptors(config.descriptors),
        ..Config::default()
    }
}

/// HTTP/2 settings of tunnels. When only the stream window is set, the connection window begins no smaller.
pub(crate) fn settings(tunnel: &TunnelConfig) -> Settings {
    let default = Settings::default();
    let streams = usize::from(tunnel.max_streams).max(1);
    let stream_window = tunnel.stream_window.unwrap_or(default.stream_window);
    let connection_window =
        tunnel.connection_window.unwrap_or_else(|| default.connection_window.max(stream_window));
    Settings {
        stream_window,
        max_stream_window: tunnel.stream_window.unwrap_or(default.max_stream_window),
        connection_window,
        frame_size: tunnel.frame_size.unwrap_or(default.frame_size),
        client_max_streams: streams,
        tunnel_memory: bytes(tunnel.memory.tunnel),
        memory: MemoryBudget::new(bytes(tunnel.memory.process)),
        ..default
    }
}
