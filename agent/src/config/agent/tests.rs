use std::collections::BTreeMap;

use super::network::name_servers;
use super::*;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn errors(pairs: &[(&str, &str)]) -> Vec<String> {
    read(&env(pairs)).map(|_| ()).unwrap_err().0
}

#[test]
fn defaults_are_those_of_ztunnel() {
    let config = read(&env(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")])).unwrap();
    assert_eq!(config.xds.unwrap().address, "https://istiod.istio-system.svc:15012");
    assert_eq!(config.sockets.mark, 1337);
    assert_eq!(config.drain, Duration::from_secs(5));
    assert_eq!(config.ports.admin, 15000);
    assert_eq!(config.local_info.cluster.as_str(), "Kubernetes");
    assert!(config.dns);
}

#[test]
fn every_bad_value_is_reported_at_once() {
    let found = errors(&[
        ("FAKE_CA", "yes"),
        ("SECRET_TTL", "soon"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "70000"),
        ("RUST_LOG", "loud"),
        ("PROXY_MODE", "dedicated"),
        ("PROXY_CONFIG", "statsPort: big"),
        ("ISTIO_META_DNS_PROXY_ADDR", "0.0.0.0"),
    ]);
    for key in [
        "FAKE_CA",
        "SECRET_TTL",
        "POOL_MAX_STREAMS_PER_CONNECTION",
        "RUST_LOG",
        "PROXY_MODE",
        "statsPort",
        "ISTIO_META_DNS_PROXY_ADDR",
    ] {
        assert!(found.iter().any(|line| line.contains(key)), "{key} is not named in {found:?}");
    }
}

#[test]
fn the_fake_ca_is_refused_with_a_control_plane_or_in_kubernetes() {
    let local = ("LOCAL_XDS", "workloads: []");
    let lab = read(&env(&[("FAKE_CA", "true"), local])).unwrap();
    assert_eq!((lab.ca, lab.xds), (CaChoice::Fake, None));
    for other in [
        ("XDS_ADDRESS", "istiod:15012"),
        ("CA_ADDRESS", "istiod:15012"),
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
    ] {
        let found = errors(&[("FAKE_CA", "true"), local, other]);
        assert!(found.iter().any(|line| line.contains("FAKE_CA")), "{other:?}: {found:?}");
    }
    let real = read(&env(&[("XDS_ADDRESS", "istiod:15012")])).unwrap();
    assert!(matches!(real.ca, CaChoice::Remote(_)));
}

#[test]
fn a_path_to_a_missing_file_stays_a_path() {
    let config =
        read(&env(&[("XDS_ROOT_CA", "/nowhere/root.pem"), ("AUTH_TOKEN", "/nowhere/token")])).unwrap();
    let xds = config.xds.unwrap();
    assert_eq!(xds.roots, Roots::File("/nowhere/root.pem".into()));
    assert_eq!(xds.token, Token::File("/nowhere/token".into()));
}

#[test]
fn the_default_drain_ends_before_the_grace_period() {
    for (grace, seconds) in [("0", 0), ("1", 1), ("10", 9), ("30", 25)] {
        let config = read(&env(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)])).unwrap();
        assert_eq!(config.drain.as_secs(), seconds, "{grace}");
    }
    let config =
        read(&env(&[("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("CONNECTION_TERMINATION_DEADLINE", "7s")]))
            .unwrap();
    assert_eq!(config.drain.as_secs(), 7);
}

#[test]
fn threads_follow_cpu_limits_and_requests() {
    let threads = |pairs: &[(&str, &str)]| read(&env(pairs)).unwrap().threads;
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "3")]), 3);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "50%"), ("ZTUNNEL_CPU_LIMIT", "5")]), 3);
    assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "1500m")]), 2);
    assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "1.5"), ("ZTUNNEL_RESOURCE_CPU_REQUEST", "4")]), 4);
    assert_eq!(threads(&[("PROXY_CONFIG", "concurrency: 7")]), 7);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "16")]), 4);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "4")]), 1);
    assert!(errors(&[("ZTUNNEL_WORKER_THREADS", "0%")])[0].contains("ZTUNNEL_WORKER_THREADS"));
    assert!(errors(&[("ZTUNNEL_CPU_LIMIT", "some")])[0].contains("some"));
}

#[test]
fn a_source_of_workloads_is_required() {
    assert!(errors(&[("XDS_ADDRESS", "")])[0].contains("XDS_ADDRESS"));
    assert!(errors(&[("LOCAL_XDS", "a"), ("LOCAL_XDS_PATH", "b")])[0].contains("LOCAL_XDS_PATH"));
    assert!(errors(&[("LOCAL_XDS_PATH", "/nowhere/config.yaml")])[0].contains("/nowhere/config.yaml"));
    assert!(errors(&[("LOCAL_XDS", "workload: []")])[0].contains("`workload`"));
}

#[test]
fn name_servers_are_those_of_resolv_conf() {
    let text =
        "search a.b\n# nameserver 1.1.1.1\nnameserver 172.21.0.10\nnameserver fd00::a\noptions ndots:5\n";
    let found: Vec<_> = name_servers(text).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["172.21.0.10:53", "[fd00::a]:53"]);
}

/// Every variable of the reference's table that has a form, with a value that has it not, and every one that asks for
/// what is not built.
#[test]
fn every_variable_rejects_invalid_values() {
    let rows = [
        ("ENABLE_PROXY", "no"),
        ("ENABLE_PROXY", "false"),
        ("PROXY_MODE", "dedicated"),
        ("PROXY_MODE", "sideways"),
        ("XDS_ROOT_CA", "SYSTEM"),
        ("CA_ROOT_CA", "SYSTEM"),
        ("XDS_ON_DEMAND", "true"),
        ("XDS_ON_DEMAND", "yes"),
        ("LOCAL_XDS_PATH", "/nowhere/config.yaml"),
        ("LOCAL_XDS", "workload: []"),
        ("SECRET_TTL", "soon"),
        ("FAKE_CA", "1"),
        ("ISTIO_META_DNS_PROXY_ADDR", "0.0.0.0:53"),
        ("UNSTABLE_ENABLE_SOCKS5", "true"),
        ("HTTP2_STREAM_WINDOW_SIZE", "2147483648"),
        ("HTTP2_STREAM_WINDOW_SIZE", "0"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", "-1"),
        ("HTTP2_FRAME_SIZE", "16383"),
        ("HTTP2_FRAME_SIZE", "16777216"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", "65536"),
        ("POOL_UNUSED_RELEASE_TIMEOUT", "5"),
        ("CONNECTION_TERMINATION_DEADLINE", "x"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30s"),
        ("ENABLE_ORIG_SRC", "maybe"),
        ("INPOD_PORT_REUSE", "True"),
        ("PACKET_MARK", "0x539"),
        ("KEEPALIVE_ENABLED", "on"),
        ("KEEPALIVE_TIME", "180"),
        ("KEEPALIVE_INTERVAL", "180"),
        ("KEEPALIVE_RETRIES", "many"),
        ("USER_TIMEOUT_ENABLED", "0"),
        ("LOCALHOST_APP_TUNNEL", "false"),
        ("IPV6_ENABLED", "off"),
        ("ENABLE_RESPONSE_BAGGAGE", "2"),
        ("COMPLIANCE_POLICY", "fips-140-2"),
        ("TRUST_DOMAIN_ALIASES", "a/b"),
        ("TLS12_ENABLED", "true"),
        ("RUST_LOG", "loud"),
        ("LOG_FORMAT", "xml"),
        ("PROXY_CONFIG", "[]"),
        ("ZTUNNEL_WORKER_THREADS", "101%"),
        ("ZTUNNEL_CPU_LIMIT", "half"),
        ("ZTUNNEL_RESOURCE_CPU_LIMIT", "1,5"),
        ("ZTUNNEL_RESOURCE_CPU_REQUEST", "m"),
    ];
    for (key, value) in rows {
        let found = errors(&[(key, value)]);
        assert!(found.len() == 1 && found[0].contains(key), "{key}={value}: {found:?}");
    }
    // All of them together are as many errors as there are variables.
    let keys: std::collections::BTreeSet<_> = rows.iter().map(|(key, _)| *key).collect();
    let found = errors(&rows);
    for key in keys.iter().filter(|key| !key.starts_with("LOCAL_XDS")) {
        assert!(found.iter().any(|line| line.contains(key)), "{key} is not named in {found:?}");
    }
}

#[test]
fn budgets_are_honoured() {
    let with = |key: &str, value: &str| read(&env(&[(key, value)])).unwrap();
    assert_eq!(with("ISTHMUS_MEMORY_BUDGET", "64Mi").tunnel.memory.pod, 32 << 20);
    assert_eq!(with("ISTHMUS_POD_MEMORY_BUDGET", "7Mi").tunnel.memory.pod, 7 << 20);
    assert_eq!(with("ISTHMUS_TUNNEL_MEMORY_BUDGET", "7Mi").tunnel.memory.tunnel, 7 << 20);
    assert_eq!(with("ISTHMUS_DESCRIPTOR_BUDGET", "1000").descriptors.pod, 500);
    assert_eq!(with("ISTHMUS_POD_DESCRIPTOR_BUDGET", "70").descriptors.pod, 70);
}

/// What each of the other variables does when it has a value.
#[test]
fn every_variable_is_honoured() {
    let with = |key: &str, value: &str| read(&env(&[(key, value)])).unwrap();
    assert_eq!(with("NODE_NAME", "n1").local_info.node.as_str(), "n1");
    assert_eq!(with("NETWORK", "net1").local_info.network.as_str(), "net1");
    assert_eq!(with("CLUSTER_ID", "c1").local_info.cluster.as_str(), "c1");
    let both = [("CLUSTER_ID", "c1"), ("ISTIO_META_CLUSTER_ID", "c2")];
    assert_eq!(read(&env(&both)).unwrap().local_info.cluster.as_str(), "c2");
    assert_eq!(with("CLUSTER_DOMAIN", "a.b").local_info.domain, "a.b");
    assert_eq!(with("TRUST_DOMAIN", "td").local_info.trust_domain.as_str(), "td");
    assert_eq!(with("CRL_PATH", "/crl.pem").trust.crl, Some("/crl.pem".into()));
    assert_eq!(
        with("COMPLIANCE_POLICY", "pqc").trust.key_exchange,
        isthmus_identity::KeyExchange::PostQuantum
    );
    assert_eq!(with("TRUST_DOMAIN_ALIASES", "old").trust.aliases, ["old".into()]);
    assert_eq!(with("MESH_CONFIG", "/mesh").trust.mesh_config, PathBuf::from("/mesh"));
    assert_eq!(with("CA_ADDRESS", "").ca, CaChoice::None);
    assert_eq!(with("PREFERED_SERVICE_NAMESPACE", "ns").local_info.preferred_namespace, Some("ns".into()));
    let plane = |key: &str, value: &str| with(key, value).xds.unwrap();
    assert_eq!(plane("XDS_ADDRESS", "a:1").address, "https://a:1");
    assert_eq!(plane("XDS_ADDRESS", "http://a:1").address, "http://a:1");
    assert_eq!(plane("ALT_XDS_HOSTNAME", "b").alt_hostname.as_deref(), Some("b"));
    assert_eq!(plane("XDS_HEADER_x-a", "b").headers["x-a"], "b");
    assert_eq!(plane("XDS_ROOT_CA", "-----BEGIN X").roots, Roots::Pem("-----BEGIN X".to_owned()));
    let token = plane("AUTH_TOKEN", "eyJh.eyJi.c2ln").token;
    assert_eq!(token, Token::Literal("eyJh.eyJi.c2ln".to_owned()));
    assert!(!format!("{token:?}").contains("eyJ"), "a token is never shown");
    assert_eq!(plane("AUTH_TOKEN", "eyJh.eyJi/c2ln").token, Token::File("eyJh.eyJi/c2ln".into()));
    assert!(!with("ISTIO_META_DNS_CAPTURE", "no").dns && with("ISTIO_META_DNS_CAPTURE", "TRUE").dns);
    assert!(!with("PROXY_CONFIG", "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'false'}").dns);
    assert_eq!(with("ISTIO_META_DNS_PROXY_ADDR", "localhost:15054").ports.dns, 15054);
    assert_eq!(with("HTTP2_STREAM_WINDOW_SIZE", "65535").tunnel.stream_window, Some(65_535));
    assert_eq!(with("HTTP2_CONNECTION_WINDOW_SIZE", "65535").tunnel.connection_window, Some(65_535));
    assert_eq!(with("HTTP2_FRAME_SIZE", "16384").tunnel.frame_size, Some(16_384));
    assert_eq!(with("POOL_MAX_STREAMS_PER_CONNECTION", "7").tunnel.max_streams, 7);
    assert_eq!(with("POOL_UNUSED_RELEASE_TIMEOUT", "7s").tunnel.idle.as_secs(), 7);
    assert_eq!(with("ENABLE_ORIG_SRC", "false").sockets.original_source, Some(false));
    assert_eq!(with("INPOD_UDS", "/a").inpod_uds, PathBuf::from("/a"));
    assert!(!with("INPOD_PORT_REUSE", "false").sockets.reuse_port);
    assert_eq!(with("PACKET_MARK", "7").sockets.mark, 7);
    assert!(with("KEEPALIVE_ENABLED", "false").sockets.keepalive.is_none());
    let keepalive = |key: &str, value: &str| with(key, value).sockets.keepalive.unwrap();
    assert_eq!(keepalive("KEEPALIVE_TIME", "7s").time.as_secs(), 7);
    assert_eq!(keepalive("KEEPALIVE_INTERVAL", "7s").interval.as_secs(), 7);
    assert_eq!(keepalive("KEEPALIVE_RETRIES", "7").retries, 7);
    assert!(keepalive("USER_TIMEOUT_ENABLED", "true").user_timeout);
    assert!(!with("IPV6_ENABLED", "false").sockets.ipv6);
    assert!(!with("ENABLE_RESPONSE_BAGGAGE", "false").response_baggage);
    assert_eq!(with("SECRET_TTL", "7s").secret_ttl.as_secs(), 7);
    assert_eq!(with("INSTANCE_IP", "10.0.0.7").local_info.instance_ip, "10.0.0.7");
    assert_eq!(with("ISTIO_META_A", "b").local_info.metadata["A"], "b");
    assert_eq!(with("ISTIO_METAJSON_A", "{}").local_info.json_metadata["A"], "{}");
    assert_eq!(with("LOG_FORMAT", "json").log.format, isthmus_rt::log::Format::Json);
    assert_eq!(with("RUST_LOG", "access:off,info").log.filter, "access:off,info");
    // Anything but exactly "true" is off.
    with("TLS12_ENABLED", "1");
    assert!(!with("AUTHZ_POLICY_INFO_LOGGING", "yes").local_info.log_dry_run_at_info);
    assert!(with("AUTHZ_POLICY_INFO_LOGGING", "true").local_info.log_dry_run_at_info);
}

#[test]
fn the_root_namespace_is_istio_system_by_default() {
    let of = |more: &[(&str, &str)]| read(&env(more)).unwrap().local_info.root_namespace.to_string();
    assert_eq!(of(&[]), "istio-system");
    assert_eq!(of(&[("ISTHMUS_ROOT_NAMESPACE", "mesh")]), "mesh");
}

#[test]
fn the_mesh_config_file_is_the_base_of_proxy_config() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh");
    let file = "defaultConfig: {discoveryAddress: 'mesh:15012', concurrency: 3, statsPort: 15099, proxyMetadata: {A: file, B: file}}";
    std::fs::write(&path, file).unwrap();
    let env: BTreeMap<_, _> = [
        ("MESH_CONFIG", path.to_str().unwrap()),
        ("PROXY_CONFIG", "concurrency: 7\nproxyMetadata: {B: own}"),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    let mut warnings = Vec::new();
    let mut reader = Reader::new(&env);
    let config = read_proxy_config(&mut reader, &mut warnings);
    assert_eq!((config.concurrency, config.stats_port), (Some(7), Some(15099)));
    assert_eq!(config.discovery_address.as_deref(), Some("mesh:15012"));
    let metadata: Vec<_> =
        config.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(metadata, [("A", "file"), ("B", "own")]);
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn connections_are_handed_over_beside_the_zds_socket_unless_told_otherwise() {
    let with = |pairs: &[(&str, &str)]| read(&env(pairs)).unwrap().handover;
    assert_eq!(with(&[]), Some(PathBuf::from("/var/run/ztunnel/ztunnel.handover.sock")));
    assert_eq!(with(&[("INPOD_UDS", "/a/z.sock")]), Some(PathBuf::from("/a/z.handover.sock")));
    assert_eq!(with(&[("HANDOVER_UDS", "/b")]), Some(PathBuf::from("/b")));
    assert_eq!(with(&[("HANDOVER", "false")]), None);
}
