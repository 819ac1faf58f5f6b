//! Labels compared with ztunnel's.

use isthmus_rt::metrics::Registry;

use super::*;
use crate::telemetry::Metrics;

fn helloworld() -> Workload {
    Workload {
        name: "helloworld-v1-abc".into(),
        namespace: "sample".into(),
        workload_name: "helloworld-v1".into(),
        canonical_name: "helloworld".into(),
        canonical_revision: "v1".into(),
        service_account: "helloworld".into(),
        cluster_id: "east".into(),
        ..Workload::default()
    }
}

/// The labels of the one series of `istio_tcp_connections_opened_total`, in order.
fn encoded(labels: &Labels) -> Vec<(String, String)> {
    let registry = Registry::default();
    Metrics::register(&registry).opened.get_or_create(labels).inc();
    let text = registry.encode().unwrap();
    let line = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total{")).unwrap();
    let inside = &line[line.find('{').unwrap() + 1..line.rfind('}').unwrap()];
    inside
        .split(',')
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn all_27_labels_are_encoded_in_ztunnels_order() {
    let client = Workload {
        workload_name: "sleep".into(),
        canonical_name: "sleep".into(),
        canonical_revision: "latest".into(),
        namespace: "sample".into(),
        cluster_id: "west".into(),
        service_account: "sleep".into(),
        locality: isthmus_model::Locality { region: "r".into(), zone: "z".into(), ..Default::default() },
        ..Workload::default()
    };
    let server = helloworld();
    let labels = Labels {
        reporter: Reporter::Destination,
        source: Party::of(&client).with_principal(Some(client.identity())),
        service: ServiceLabels {
            hostname: "helloworld.sample.svc.cluster.local".into(),
            namespace: "sample".into(),
            name: "helloworld".into(),
        },
        destination: Party::of(&server).with_principal(Some(server.identity())),
        flag: ResponseFlag::Deny,
        mutual_tls: true,
    };
    let expected = pairs(&[
        ("reporter", "destination"),
        ("source_workload", "sleep"),
        ("source_canonical_service", "sleep"),
        ("source_canonical_revision", "latest"),
        ("source_workload_namespace", "sample"),
        ("source_principal", "spiffe://cluster.local/ns/sample/sa/sleep"),
        ("source_app", "sleep"),
        ("source_version", "latest"),
        ("source_cluster", "west"),
        ("destination_service", "helloworld.sample.svc.cluster.local"),
        ("destination_service_namespace", "sample"),
        ("destination_service_name", "helloworld"),
        ("destination_workload", "helloworld-v1"),
        ("destination_canonical_service", "helloworld"),
        ("destination_canonical_revision", "v1"),
        ("destination_workload_namespace", "sample"),
        ("destination_principal", "spiffe://cluster.local/ns/sample/sa/helloworld"),
        ("destination_app", "helloworld"),
        ("destination_version", "v1"),
        ("destination_cluster", "east"),
        ("request_protocol", "tcp"),
        ("response_flags", "DENY"),
        ("connection_security_policy", "mutual_tls"),
        ("source_region", "r"),
        ("source_zone", "z"),
        ("destination_region", "unknown"),
        ("destination_zone", "unknown"),
    ]);
    assert_eq!(expected.len(), 27);
    assert_eq!(encoded(&labels), expected);
}

#[test]
fn unknown_values_are_encoded_as_unknown_without_locality() {
    let got = encoded(&Labels::default());
    assert_eq!(got.len(), 23, "the four locality labels need a known workload");
    let unknown = got.iter().filter(|(_, value)| value == "unknown").count();
    assert_eq!(unknown, 20, "{got:?}");
    assert_eq!(got[21], ("response_flags".to_owned(), "-".to_owned()));
}

#[test]
fn flags_have_ztunnels_values() {
    let flags = [
        ResponseFlag::None,
        ResponseFlag::Deny,
        ResponseFlag::Connect,
        ResponseFlag::TlsFailure,
        ResponseFlag::H2HandshakeFailure,
        ResponseFlag::NetworkPolicy,
        ResponseFlag::IdentityError,
    ];
    let texts =
        ["-", "DENY", "CONNECT", "TLS_FAILURE", "H2_HANDSHAKE_FAILURE", "NETWORK_POLICY", "IDENTITY_ERROR"];
    assert_eq!(flags.map(ResponseFlag::as_str), texts);
}
