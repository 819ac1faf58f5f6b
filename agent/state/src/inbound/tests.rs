use super::*;
use crate::fixture::{NETWORK, at, by_address, by_name, pod, service, serving, snapshot};
use isthmus_model::workload::ApplicationTunnel;

fn target(snapshot: &Snapshot, local: &Workload, authority: &str) -> Result<InboundTarget, InboundError> {
    let authority = authority.parse().unwrap();
    inbound_target(snapshot, local, "10.0.0.1:15008".parse().unwrap(), &authority, &NETWORK.into())
}

fn line(result: Result<InboundTarget, InboundError>) -> String {
    match result {
        Ok(target) => {
            let service = target.service.map(|service| format!(" for {}", service.key())).unwrap_or_default();
            let tunnel = target.tunnel.map(|tunnel| format!(" telling {}", tunnel.destination));
            format!("{}{service}{}", target.addr, tunnel.unwrap_or_default())
        }
        Err(error) => format!("{}: {error}", if error.is_peers_fault() { "peer" } else { "here" }),
    }
}

fn tunnelled(mut workload: Workload, port: Option<u16>) -> Workload {
    workload.application_tunnel = Some(ApplicationTunnel { protocol: TunnelKind::Proxy, port });
    workload
}

#[test]
fn an_address_must_be_our_own() {
    let local = pod("a", "10.0.0.1");
    let state = snapshot(std::slice::from_ref(&local), &[]);
    for (authority, want) in [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("10.0.0.2:80", "peer: ip mismatch: 10.0.0.1 != 10.0.0.2"),
        ("127.0.0.1:80", "peer: ip mismatch: 10.0.0.1 != 127.0.0.1"),
        ("10.0.0.1:15008", "here: attempted recursive call to ourselves"),
        ("10.0.0.1:15001", "here: attempted recursive call to ourselves"),
        ("10.0.0.1:15006", "here: attempted recursive call to ourselves"),
        ("10.0.0.1:15021", "10.0.0.1:15021"),
    ] {
        assert_eq!(line(target(&state, &local, authority)), want, "{authority}");
    }
}

#[test]
fn a_hostname_needs_a_service_with_a_known_port() {
    let mut web = service("web", "10.96.0.1");
    web.ports = [(80, 8080), (81, 0), (82, 15008)].into();
    let mut local = pod("a", "10.0.0.1");
    local.services.insert(web.key(), [(81, 9090)].into());
    let state = snapshot(std::slice::from_ref(&local), &[web]);
    let host = "web.ns.svc.cluster.local";
    for (authority, want) in [
        (format!("{host}:80"), format!("10.0.0.1:8080 for ns/{host}")),
        (format!("{host}:81"), format!("10.0.0.1:9090 for ns/{host}")),
        (format!("{host}:82"), "here: attempted recursive call to ourselves".to_owned()),
        (format!("{host}:83"), format!("here: requested service {host}:83 found, but cannot resolve port")),
        ("other:80".to_owned(), "here: no service or workload for hostname: other".to_owned()),
    ] {
        assert_eq!(line(target(&state, &local, &authority)), want, "{authority}");
    }
    // A named port without a known number.
    let stranger = pod("b", "10.0.0.1");
    let got = line(target(&state, &stranger, &format!("{host}:81")));
    assert_eq!(got, format!("here: requested service {host}:81 found, but cannot resolve port"));
}

#[test]
fn a_service_that_this_pod_serves_wins_a_hostname() {
    let named = |namespace: &str, port: u16| {
        let mut service = service("web", "10.96.0.1");
        service.namespace = namespace.into();
        service.hostname = "web.example.com".into();
        service.ports = [(80, port)].into();
        service
    };
    let mut canonical = named("x", 1);
    canonical.canonical = true;
    let served = named("y", 2);
    let mut hidden = named("z", 3);
    hidden.visibility = isthmus_model::Visibility::Namespace;
    let local = serving(pod("a", "10.0.0.1"), &served);
    let state = snapshot(&[], &[canonical, served, hidden.clone()]);
    assert_eq!(line(target(&state, &local, "web.example.com:80")), "10.0.0.1:2 for y/web.example.com");
    let stranger = pod("b", "10.0.0.1");
    assert_eq!(line(target(&state, &stranger, "web.example.com:80")), "10.0.0.1:1 for x/web.example.com");
    let only_hidden = snapshot(&[], &[hidden]);
    let got = line(target(&only_hidden, &stranger, "web.example.com:80"));
    assert_eq!(got, "here: no service or workload for hostname: web.example.com");
}

#[test]
fn a_waypoint_accepts_connects_for_what_it_serves() {
    let mut waypoint = service("waypoint", "10.96.0.7");
    waypoint.ports = [(15008, 15008)].into();
    let local = serving(pod("wp", "10.0.0.1"), &waypoint);
    let reference = by_name("ns/waypoint.ns.svc.cluster.local");
    let mut behind = service("web", "10.96.0.1");
    behind.waypoint = Some(reference.clone());
    let mut canary = service("canary", "10.96.0.2");
    canary.weighted_waypoints = vec![(by_name("ns/other"), 1), (reference.clone(), 1)];
    let mut hidden = service("hidden", "10.96.0.4");
    hidden.namespace = "other".into();
    hidden.visibility = isthmus_model::Visibility::Namespace;
    hidden.waypoint = Some(reference);
    let mut workload = pod("b", "10.0.0.2");
    workload.waypoint = Some(by_address(NETWORK, "10.0.0.1"));
    let workloads = [local.clone(), workload, pod("c", "10.0.0.3")];
    let services = [waypoint, behind, canary, hidden, service("none", "10.96.0.3")];
    let state = snapshot(&workloads, &services);
    for (authority, want) in [
        ("10.96.0.1:80", "10.0.0.1:80"),
        ("10.96.0.2:80", "10.0.0.1:80"),
        ("10.96.0.4:80", "10.0.0.1:80"),
        ("10.0.0.2:80", "10.0.0.1:80"),
        ("10.96.0.3:80", "peer: ip mismatch: 10.0.0.1 != 10.96.0.3"),
        ("10.0.0.3:80", "peer: ip mismatch: 10.0.0.1 != 10.0.0.3"),
    ] {
        assert_eq!(line(target(&state, &local, authority)), want, "{authority}");
    }
    // A workload that is not the service's waypoint is not addressed by it.
    let stranger = pod("c", "10.0.0.1");
    assert!(target(&state, &stranger, "10.96.0.1:80").unwrap_err().is_peers_fault());
}

#[test]
fn an_application_tunnel_accepts_and_announces_any_destination() {
    let mut web = service("web", "10.96.0.1");
    web.vips = vec![at("west", "10.97.0.1"), at(NETWORK, "fd96::1"), at(NETWORK, "10.96.0.1")];
    let headless = service("headless", "");
    let state = snapshot(&[], &[web, headless]);
    let with_port = tunnelled(pod("a", "10.0.0.1"), Some(15088));
    let without = tunnelled(pod("a", "10.0.0.1"), None);
    let host = "web.ns.svc.cluster.local";
    for (local, authority, want) in [
        (&with_port, "10.9.9.9:80".to_owned(), "10.0.0.1:15088 telling 10.9.9.9:80".to_owned()),
        (&without, "10.9.9.9:80".to_owned(), "10.0.0.1:80 telling 10.9.9.9:80".to_owned()),
        (&with_port, format!("{host}:80"), format!("10.0.0.1:15088 for ns/{host} telling 10.96.0.1:80")),
        (
            &with_port,
            "headless.ns.svc.cluster.local:80".to_owned(),
            "here: requested service headless.ns.svc.cluster.local found, but has no IP addresses".to_owned(),
        ),
        (&with_port, "10.9.9.9:15008".to_owned(), "here: attempted recursive call to ourselves".to_owned()),
    ] {
        assert_eq!(line(target(&state, local, &authority)), want, "{authority}");
    }
}

#[test]
fn the_label_is_a_service_that_this_pod_serves() {
    let (web, mut api) = (service("web", "10.96.0.1"), service("api", "10.96.0.2"));
    api.ports = [(80, 9090)].into();
    let local = serving(serving(pod("a", "10.0.0.1"), &web), &api);
    let state = snapshot(std::slice::from_ref(&local), &[web, api, service("other", "10.96.0.3")]);
    for (claimed, port, want) in [
        (None, 8080, Some("web")),
        (None, 9090, Some("api")),
        (None, 1, None),
        (Some("web.ns.svc.cluster.local"), 9090, Some("web")),
        (Some("other.ns.svc.cluster.local"), 9090, Some("api")),
        (Some("other.ns.svc.cluster.local"), 1, None),
    ] {
        let label = service_label(&state, &local, claimed, port).map(|service| service.name.as_str());
        assert_eq!(label, want, "{claimed:?} {port}");
    }
}
