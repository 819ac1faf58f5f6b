use super::*;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn errors(pairs: &[(&str, &str)]) -> Vec<String> {
    read(&env(pairs)).map(|_| ()).unwrap_err().0
}

#[test]
fn the_defaults_are_ztunnels() {
    let config = read(&env(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1")])).unwrap();
    assert_eq!(config.xds.unwrap().address, "https://istiod.istio-system.svc:15012");
    assert_eq!(config.sockets.mark, 1337);
    assert_eq!(config.drain, Duration::from_secs(5));
    assert_eq!(config.ports.admin.port(), 15000);
    assert_eq!(config.place.cluster.as_str(), "Kubernetes");
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
fn the_fake_ca_never_meets_a_real_mesh() {
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
fn a_missing_path_is_a_path() {
    let config =
        read(&env(&[("XDS_ROOT_CA", "/nowhere/root.pem"), ("AUTH_TOKEN", "/nowhere/token")])).unwrap();
    let xds = config.xds.unwrap();
    assert_eq!(xds.roots, Roots::File("/nowhere/root.pem".into()));
    assert_eq!(xds.token, Token::File("/nowhere/token".into()));
}

#[test]
fn the_drain_time_leaves_room_for_the_end() {
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
fn threads_follow_limits_and_requests() {
    let threads = |pairs: &[(&str, &str)]| read(&env(pairs)).unwrap().threads;
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "3")]), 3);
    assert_eq!(threads(&[("ZTUNNEL_WORKER_THREADS", "50%"), ("ZTUNNEL_CPU_LIMIT", "5")]), 3);
    assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "1500m")]), 2);
    assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "1.5"), ("ZTUNNEL_RESOURCE_CPU_REQUEST", "4")]), 4);
    assert_eq!(threads(&[("PROXY_CONFIG", "concurrency: 7")]), 7);
    assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "16")]), 4);
    assert!(errors(&[("ZTUNNEL_WORKER_THREADS", "0%")])[0].contains("ZTUNNEL_WORKER_THREADS"));
    assert!(errors(&[("ZTUNNEL_CPU_LIMIT", "some")])[0].contains("some"));
}

#[test]
fn without_any_source_of_workloads_there_is_nothing_to_do() {
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
