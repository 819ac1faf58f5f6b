//! The agent's settings as `config` of ztunnel's config dump: its keys and shapes. Tokens and header values are not shown.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::proxy_context;
use crate::config::agent::{AgentConfig, CaChoice, ControlPlane, Roots, SocketConfig};

/// The whole object. Features of ztunnel that do not exist here are shown as off.
pub(crate) fn config(config: &AgentConfig) -> Value {
    let parts = [process(config), mesh(config), control_planes(config), data_plane(config)];
    // Sorted, so that a key is found in the long list.
    let all: BTreeMap<_, _> =
        parts.into_iter().filter_map(|part| part.as_object().cloned()).flatten().collect();
    json!(all)
}

fn process(config: &AgentConfig) -> Value {
    json!({
        "proxyMode": "Shared",
        "proxyArgs": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "proxyWorkloadInformation": null,
        "proxyMetadata": config.local_info.metadata,
        "proxy": true,
        "adminAddr": address(config.admin_address(), config.sockets.ipv6),
        "statsAddr": address(config.metrics_address(), config.sockets.ipv6),
        "readinessAddr": address(config.readiness_address(), config.sockets.ipv6),
        "inpodUds": config.inpod_uds.display().to_string(),
        "handoverUds": config.handover.as_ref().map(|path| path.display().to_string()),
        "inpodPortReuse": config.sockets.reuse_port,
        "numWorkerThreads": config.threads,
        "selfTerminationDeadline": duration(config.drain),
    })
}

fn mesh(config: &AgentConfig) -> Value {
    let local_info = &config.local_info;
    let own = [&local_info.pod_name, &local_info.pod_namespace, &local_info.service_account];
    let own = own.iter().all(|part| !part.is_empty()).then(|| {
        json!({"name": local_info.pod_name, "namespace": local_info.pod_namespace, "serviceAccount": local_info.service_account})
    });
    let identity = own.as_ref().map(|_| {
        format!(
            "spiffe://{}/ns/{}/sa/{}",
            local_info.trust_domain, local_info.pod_namespace, local_info.service_account
        )
    });
    json!({
        "network": local_info.network.as_str(),
        "clusterId": local_info.cluster.as_str(),
        "clusterDomain": local_info.domain,
        "localNode": (!local_info.node.as_str().is_empty()).then(|| local_info.node.as_str()),
        "preferedServiceNamespace": local_info.preferred_namespace.as_ref().map(isthmus_model::Namespace::as_str),
        "ztunnelIdentity": identity,
        "ztunnelWorkload": own,
    })
}

fn control_planes(config: &AgentConfig) -> Value {
    let xds = config.xds.as_ref();
    let ca = match &config.ca {
        CaChoice::Remote(plane) => Some(plane),
        CaChoice::Fake | CaChoice::None => None,
    };
    json!({
        "xdsAddress": xds.map(|plane| &plane.address),
        "xdsRootCert": xds.map(roots),
        "xdsHeaders": xds.map(headers).unwrap_or_default(),
        "altXdsHostname": xds.and_then(|plane| plane.alt_hostname.as_ref()),
        "xdsOnDemand": false,
        "caAddress": ca.map(|plane| &plane.address),
        "caRootCert": ca.map(roots),
        "caHeaders": ca.map(headers).unwrap_or_default(),
        "altCaHostname": ca.and_then(|plane| plane.alt_hostname.as_ref()),
        "fakeCa": matches!(config.ca, CaChoice::Fake),
        "secretTtl": duration(config.secret_ttl),
        "crlPath": config.trust.crl.as_ref().map(|path| path.display().to_string()),
    })
}

fn data_plane(config: &AgentConfig) -> Value {
    let (tunnel, proxy, sockets) =
        (proxy_context::settings(&config.tunnel), proxy_context::proxy_config(config), &config.sockets);
    let any = |port| SocketAddr::new(sockets.wildcard(), port).to_string();
    json!({
        "inboundAddr": any(proxy.ports.inbound),
        "inboundPlaintextAddr": any(proxy.ports.inbound_plaintext),
        "outboundAddr": any(proxy.ports.outbound),
        "socks5Addr": null,
        "illegalPorts": proxy.ports.in_pods(),
        "dnsProxy": config.dns,
        "dnsProxyAddr": {"Localhost": [sockets.ipv6, config.ports.dns]},
        "dnsResolverCfg": {"domain": null, "search": [], "name_servers": resolvers(&config.resolvers)},
        "dnsResolverOpts": {},
        "windowSize": tunnel.stream_window,
        "connectionWindowSize": tunnel.connection_window,
        "frameSize": tunnel.frame_size,
        "memoryBudget": {
            "process": config.tunnel.memory.process,
            "pod": config.tunnel.memory.pod,
            "tunnel": config.tunnel.memory.tunnel,
        },
        "descriptorBudget": {"process": config.descriptors.process, "pod": config.descriptors.pod},
        "poolMaxStreamsPerConn": tunnel.client_max_streams,
        "poolUnusedReleaseTimeout": duration(config.tunnel.idle),
        "packetMark": sockets.mark,
        "socketConfig": keepalive(sockets),
        "requireOriginalSource": sockets.original_source,
        "ipv6Enabled": sockets.ipv6,
        "localhostAppTunnel": true,
        "fakeSelfInbound": false,
        "enableEnhancedBaggage": config.response_baggage,
    })
}

/// The form in which ztunnel's resolver library serialises its configuration.
fn resolvers(resolvers: &[SocketAddr]) -> Vec<Value> {
    let connection =
        |port, protocol| json!({"bind_addr": null, "port": port, "protocol": {"type": protocol}});
    let server = |at: &SocketAddr| {
        json!({
            "ip": at.ip(),
            "trust_negative_responses": true,
            "connections": [connection(at.port(), "udp"), connection(at.port(), "tcp")],
        })
    };
    resolvers.iter().map(server).collect()
}

fn keepalive(sockets: &SocketConfig) -> Value {
    let settings = sockets.keepalive.unwrap_or_default();
    json!({
        "keepaliveEnabled": sockets.keepalive.is_some(),
        "keepaliveTime": duration(settings.time),
        "keepaliveInterval": duration(settings.interval),
        "keepaliveRetries": settings.retries,
        "userTimeoutEnabled": settings.user_timeout,
    })
}

fn address(address: SocketAddr, ipv6: bool) -> Value {
    if address.ip().is_loopback() {
        json!({"Localhost": [ipv6, address.port()]})
    } else {
        json!({"SocketAddr": address.to_string()})
    }
}

fn duration(value: Duration) -> Value {
    json!({"secs": value.as_secs(), "nanos": value.subsec_nanos()})
}

fn roots(plane: &ControlPlane) -> Value {
    match &plane.roots {
        Roots::File(path) => json!({"File": path.display().to_string()}),
        Roots::Pem(_) => json!("Static"),
    }
}

fn headers(plane: &ControlPlane) -> Vec<(&str, &'static str)> {
    plane.headers.keys().map(|name| (name.as_str(), "(hidden)")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ztunnel's keys, and our `descriptorBudget`, `handoverUds` and `memoryBudget`.
    const KEYS: &str = "adminAddr altCaHostname altXdsHostname caAddress caHeaders caRootCert clusterDomain clusterId \
        connectionWindowSize crlPath descriptorBudget dnsProxy dnsProxyAddr dnsResolverCfg dnsResolverOpts enableEnhancedBaggage fakeCa \
        fakeSelfInbound frameSize handoverUds illegalPorts inboundAddr inboundPlaintextAddr inpodPortReuse inpodUds ipv6Enabled \
        localNode localhostAppTunnel memoryBudget network numWorkerThreads outboundAddr packetMark poolMaxStreamsPerConn \
        poolUnusedReleaseTimeout preferedServiceNamespace proxy proxyArgs proxyMetadata proxyMode \
        proxyWorkloadInformation readinessAddr requireOriginalSource secretTtl selfTerminationDeadline socketConfig \
        socks5Addr statsAddr windowSize xdsAddress xdsHeaders xdsOnDemand xdsRootCert ztunnelIdentity ztunnelWorkload";

    fn dump(pairs: &[(&str, &str)]) -> Value {
        let env: BTreeMap<_, _> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        config(&crate::config::agent::read(&env).unwrap())
    }

    #[test]
    fn keys_and_shapes_are_those_of_ztunnel() {
        let dump = dump(&[
            ("XDS_ADDRESS", "istiod:15012"),
            ("XDS_HEADER_secret", "value"),
            ("POD_NAME", "ztunnel-x"),
            ("POD_NAMESPACE", "istio-system"),
            ("SERVICE_ACCOUNT", "ztunnel"),
        ]);
        let keys: Vec<_> = dump.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, KEYS.split_whitespace().collect::<Vec<_>>());
        assert_eq!(dump["adminAddr"], json!({"Localhost": [true, 15000]}));
        assert_eq!(dump["statsAddr"], json!({"SocketAddr": "[::]:15020"}));
        assert_eq!(dump["outboundAddr"], "[::]:15001");
        assert_eq!(dump["secretTtl"], json!({"secs": 86_400, "nanos": 0}));
        assert_eq!(dump["ztunnelIdentity"], "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
        assert_eq!(dump["ztunnelWorkload"]["serviceAccount"], "ztunnel");
        assert!(!dump.to_string().contains("value"), "{dump}");
    }

    #[test]
    fn configured_ports_reach_the_dump_the_proxy_and_the_state() {
        let settings = [
            ("XDS_ADDRESS", "istiod:15012"),
            ("PROXY_CONFIG", "{statsPort: 15090, proxyAdminPort: 15091}"),
            ("ISTIO_META_DNS_PROXY_ADDR", "localhost:15054"),
        ];
        let shown = dump(&settings);
        assert_eq!(shown["statsAddr"], json!({"SocketAddr": "[::]:15090"}));
        assert_eq!(shown["adminAddr"], json!({"Localhost": [true, 15091]}));
        assert_eq!(shown["illegalPorts"], json!([15001, 15006, 15008, 15054]));
        let env: BTreeMap<_, _> = settings.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let read = crate::config::agent::read(&env).unwrap();
        assert_eq!(proxy_context::proxy_config(&read).ports, read.ports);
        assert_eq!(proxy_context::state(&read).load().options().ports, read.ports);
        assert_eq!(read.ports.served_to_the_mesh(), [15090, 15021]);
    }

    #[test]
    fn without_ipv6_listeners_are_ipv4_only() {
        let dump = dump(&[("XDS_ADDRESS", "istiod:15012"), ("IPV6_ENABLED", "false")]);
        assert_eq!(dump["adminAddr"], json!({"Localhost": [false, 15000]}));
        assert_eq!(dump["readinessAddr"], json!({"SocketAddr": "0.0.0.0:15021"}));
        assert_eq!((&dump["ztunnelIdentity"], &dump["localNode"]), (&Value::Null, &Value::Null));
    }
}
