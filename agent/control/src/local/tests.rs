use isthmus_model::policy::{Match, StringMatch};
use isthmus_model::service::{HealthPolicy, LbMode, LbScope};
use isthmus_model::workload::WorkloadType;
use isthmus_model::{
    Action, GatewayDestination, Health, IpFamilies, NetworkMode, Protocol, Scope, Visibility,
};

use super::*;

const MINIMAL: &str = r#"
workloads:
- uid: c//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1", "::ffff:127.0.0.2"]
  protocol: HBONE
  node: local
  network: ""
  services:
    "default/example.com":
      80: 8080
    "default/other.example.com": {}
- name: plain
  namespace: default
  workloadIps: []
  services: {}
services:
- name: local
  namespace: default
  hostname: example.com
  vips:
  - /127.10.0.1
  - remote/127.10.0.2
  ports:
    80: 8080
  subjectAltNames:
  - spiffe://cluster.local/ns/default/sa/local
policies:
- name: deny-9999
  namespace: default
  scope: Namespace
  action: Allow
  rules:
  - - - notDestinationPorts:
        - 9999
"#;

const EVERYTHING: &str = r#"
workloads:
- uid: u
  namespace: n
  workloadIps: []
  services: {}
  hostname: db.example.com
  networkMode: HostNetwork
  trustDomain: td
  clusterId: c2
  canonicalName: cn
  canonicalRevision: v1
  workloadName: wn
  workloadType: cronjob
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [n/p]
  status: Unhealthy
  locality: {region: r, zone: z}
  capacity: 3
  waypoint: {destination: n/waypoint.n.svc.cluster.local, hboneMtlsPort: 15008}
  networkGateway: {destination: west/192.168.97.2, hboneMtlsPort: 15008}
services:
- name: s
  namespace: n
  hostname: s.n.svc.cluster.local
  vips: []
  cidrVips: [{network: west, cidr: 10.0.0.0/8}]
  ports: {}
  waypoint: {destination: /10.0.0.1, hboneMtlsPort: 15008}
  weightedWaypoints: [{destination: {destination: n/w, hboneMtlsPort: 15008}, weight: 7}]
  loadBalancer: {routingPreferences: [Network, Region, Zone, Subzone, Node, Cluster], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: IPv4
  canonical: true
  visibility: Namespace
policies:
- name: p
  namespace: n
  scope: WorkloadSelector
  action: Deny
  dryRun: true
  rules:
  - - - principals: [!Exact a, !Prefix b, !Suffix c, !Presence []]
        notPrincipals: [!Presence ]
        serviceAccounts: [{namespace: n, serviceAccount: a}]
        sourceIps: [10.0.0.0/8, "::1/128"]
      - {}
    - []
  - []
"#;

#[test]
fn a_typical_file_is_read() {
    let LocalConfig { workloads, services, policies } = load(MINIMAL).unwrap();
    let local = &workloads[0];
    assert_eq!(local.uid.as_str(), "c//v1/Pod/default/local");
    assert_eq!(local.protocol, Protocol::Hbone);
    let addresses: Vec<String> = local.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["127.0.0.1", "127.0.0.2"], "canonical");
    let ports: Vec<_> = local.services.iter().map(|(name, ports)| (name.to_string(), ports.len())).collect();
    assert_eq!(ports, [("default/example.com".to_owned(), 1), ("default/other.example.com".to_owned(), 0)]);
    assert_eq!(local.identity().to_string(), "spiffe://cluster.local/ns/default/sa/default");
    let plain = &workloads[1];
    assert_eq!(plain.uid.as_str(), "Kubernetes//Pod/default/plain", "made of the name when there is none");
    assert_eq!((plain.protocol, plain.status, plain.capacity), (Protocol::Tcp, Health::Healthy, 1));
    assert_eq!((plain.service_account.as_str(), plain.cluster_id.as_str()), ("default", "Kubernetes"));
    let [service] = services.as_slice() else { panic!("one service") };
    let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["/127.10.0.1", "remote/127.10.0.2"]);
    assert_eq!(service.subject_alt_names[0].to_string(), "spiffe://cluster.local/ns/default/sa/local");
    let [policy] = policies.as_slice() else { panic!("one policy") };
    assert_eq!((policy.scope, policy.action, policy.dry_run), (Scope::Namespace, Action::Allow, false));
    assert_eq!(policy.rules, [[[Match { not_destination_ports: vec![9999], ..Match::default() }]]]);
    assert_eq!(policy.key().as_str(), "default/deny-9999");
}

#[test]
fn every_key_of_the_config_dump_is_accepted() {
    let LocalConfig { workloads, services, policies } = load(EVERYTHING).unwrap();
    let workload = &workloads[0];
    assert_eq!((workload.network_mode, workload.status), (NetworkMode::HostNetwork, Health::Unhealthy));
    assert_eq!((workload.workload_type, workload.capacity), (WorkloadType::CronJob, 3));
    assert_eq!(workload.application_tunnel.unwrap().port, Some(15088));
    assert_eq!((workload.locality.region.as_str(), workload.locality.subzone.as_str()), ("r", ""));
    let waypoint = &workload.waypoint.as_ref().unwrap().destination;
    assert!(matches!(waypoint, GatewayDestination::Hostname(name) if name.namespace.as_str() == "n"));
    let gateway = &workload.network_gateway.as_ref().unwrap().destination;
    assert!(matches!(gateway, GatewayDestination::Address(address) if address.network.as_str() == "west"));
    let service = &services[0];
    let balancer = service.load_balancer.as_ref().unwrap();
    assert_eq!((balancer.mode, balancer.health_policy), (LbMode::Failover, HealthPolicy::AllowAll));
    assert_eq!(balancer.routing_preferences[..2], [LbScope::Network, LbScope::Region]);
    assert_eq!((service.ip_families, service.visibility), (Some(IpFamilies::Ipv4), Visibility::Namespace));
    assert_eq!((service.weighted_waypoints[0].1, service.cidr_vips.len()), (7, 1));
    let rules = &policies[0].rules;
    let shape: Vec<Vec<usize>> = rules.iter().map(|rule| rule.iter().map(Vec::len).collect()).collect();
    assert_eq!(shape, [vec![2, 0], vec![]]);
    let texts = &rules[0][0][0].principals;
    assert_eq!(
        *texts,
        [
            StringMatch::Exact("a".into()),
            StringMatch::Prefix("b".into()),
            StringMatch::Suffix("c".into()),
            StringMatch::Presence
        ]
    );
    assert_eq!(rules[0][0][0].not_principals, [StringMatch::Presence]);
    assert_eq!(rules[0][0][1], Match::default());
}

/// The file's addresses, ranges and names are those that the same mesh would have from the control plane.
#[test]
fn a_file_passes_the_same_door_as_the_control_plane() {
    let LocalConfig { workloads, services, policies } = load(
        r#"
workloads:
- name: a
  namespace: n
  workloadIps: ["::ffff:10.0.0.1"]
  hostname: DB.Example.
  services: {"n/API.Example": {80: 8080}}
  applicationTunnel: {protocol: PROXY, port: 0}
  waypoint: {destination: "/::ffff:10.0.0.9", hboneMtlsPort: 0}
services:
- name: s
  namespace: n
  hostname: API.Example
  vips: ["/::ffff:10.1.0.1"]
  cidrVips: [{network: "", cidr: "::ffff:10.2.0.7/104"}, {network: "", cidr: 10.3.0.1/32}]
  ports: {}
  waypoint: {destination: n/Way.Example, hboneMtlsPort: 0}
policies:
- name: p
  namespace: n
  scope: Namespace
  action: Deny
  rules:
  - - - sourceIps: ["::ffff:192.0.2.1/128"]
        notSourceIps: ["::ffff:192.0.2.0/120"]
        destinationIps: ["::ffff:0.0.0.0/96"]
        notDestinationIps: ["2001:db8::/32", "::/0"]
"#,
    )
    .unwrap();
    let (workload, service) = (&workloads[0], &services[0]);
    let waypoint = workload.waypoint.as_ref().unwrap();
    assert_eq!(workload.addresses, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((waypoint.destination.to_string().as_str(), waypoint.hbone_mtls_port), ("/10.0.0.9", 15008));
    assert_eq!(workload.application_tunnel.unwrap().port, None, "0 is no port");
    assert_eq!(workload.hostname.as_str(), "db.example");
    assert!(workload.services.contains_key(&service.key()) && service.hostname.as_str() == "api.example");
    let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["/10.1.0.1", "/10.3.0.1"]);
    assert_eq!(service.cidr_vips[0].cidr.to_string(), "10.0.0.0/8");
    let waypoint = service.waypoint.as_ref().unwrap();
    assert_eq!(
        (waypoint.destination.to_string().as_str(), waypoint.hbone_mtls_port),
        ("n/way.example", 15008)
    );
    let wanted = &policies[0].rules[0][0][0];
    let texts = |ranges: &[ipnet::IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&wanted.source_ips), ["192.0.2.1/32"]);
    assert_eq!(texts(&wanted.not_source_ips), ["192.0.2.0/24"]);
    assert_eq!(texts(&wanted.destination_ips), ["0.0.0.0/0"]);
    assert_eq!(texts(&wanted.not_destination_ips), ["2001:db8::/32", "::/0"]);
}

#[test]
fn an_empty_file_is_an_empty_configuration() {
    for text in ["", "# nothing\n", "{}", "workloads: []\n"] {
        assert_eq!(load(text).unwrap(), LocalConfig::default(), "{text:?}");
    }
}

/// A policy with one rule.
fn policy(rule: &str) -> String {
    format!("policies:\n- name: p\n  namespace: n\n  scope: Global\n  action: Allow\n  rules: [[[{rule}]]]\n")
}

/// Each text is refused with one line that names all of these.
fn refused<const N: usize>(texts: [(String, Vec<&str>); N]) {
    for (text, named) in texts {
        let error = load(&text).unwrap_err().to_string();
        for name in named {
            assert!(error.contains(name), "{text}\n{error} does not name {name}");
        }
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn unknown_keys_and_values_of_a_policy_are_named() {
    refused([
        (policy("{principals: [a]}"), vec!["principals"]),
        (policy("{principals: [!Regex a]}"), vec!["Regex"]),
        (policy("{principal: [!Exact a]}"), vec!["`principal`"]),
        (policy("{sourceIps: [10.0.0.0/33]}"), vec!["sourceIps"]),
        (policy("{destinationPorts: [65536]}"), vec!["destinationPorts", "65536"]),
    ]);
}

#[test]
fn unknown_keys_and_values_are_named() {
    let workload = |line: &str| {
        format!("workloads:\n- uid: u\n  namespace: n\n  workloadIps: []\n  services: {{}}\n  {line}\n")
    };
    let service = |line: &str| {
        format!("services:\n- name: s\n  namespace: n\n  hostname: h\n  ports: {{}}\n  {line}\n")
    };
    refused([
        ("workload: []".to_owned(), vec!["`workload`"]),
        (workload("colour: red"), vec!["`colour`", "line 6"]),
        (workload("protocol: QUIC"), vec!["QUIC", "HBONE"]),
        (workload("capacity: many"), vec!["capacity", "many"]),
        (
            workload("waypoint: {destination: nowhere, hboneMtlsPort: 15008}"),
            vec!["\"nowhere\"", "<namespace>/<hostname>"],
        ),
        (workload("waypoint: {destination: n/h}"), vec!["hboneMtlsPort"]),
        ("workloads:\n- namespace: n\n  workloadIps: []\n".to_owned(), vec!["`services`"]),
        ("workloads:\n- namespace: n\n  services: {}\n".to_owned(), vec!["`workloadIps`"]),
        ("workloads:\n- workloadIps: []\n  services: {}\n".to_owned(), vec!["`namespace`"]),
        (
            "workloads:\n- namespace: n\n  workloadIps: [10.0.0]\n  services: {}\n".to_owned(),
            vec!["workloadIps", "IP address"],
        ),
        (
            "workloads:\n- namespace: n\n  workloadIps: []\n  services: {}\n".to_owned(),
            vec!["workloads[0]", "neither uid nor name"],
        ),
        (
            "workloads:\n- namespace: n\n  workloadIps: []\n  services: {host: {}}\n".to_owned(),
            vec!["\"host\""],
        ),
        (service("vips: []").replace("hostname: h", "hostname: ''"), vec!["services[0].hostname", "missing"]),
        (service("vips: []").replace("namespace: n", "namespace: a/b"), vec!["services[0].namespace", "a/b"]),
        (
            policy("{sourceIps: []}")
                .replace("namespace: n\n  scope: Global", "namespace: ''\n  scope: Namespace"),
            vec!["policies[0].namespace", "missing"],
        ),
        (service("vips: [10.0.0.1]"), vec!["\"10.0.0.1\"", "<network>/<ip>"]),
        (service("vips: []\n  subjectAltNames: [cart]"), vec!["\"cart\"", "spiffe://"]),
        (service("vips: []\n  endpoints: {}"), vec!["`endpoints`"]),
        ("policies: [".to_owned(), vec!["line"]),
        (
            [workload("node: a"), workload("node: b").replace("workloads:\n", "")].concat(),
            vec!["workload \"u\"", "twice"],
        ),
    ]);
}
