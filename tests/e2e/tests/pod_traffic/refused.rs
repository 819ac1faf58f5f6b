//! Refusals: the reference's status or reset, one access log line with source, destination and reason, and no effect on
//! other connections.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use isthmus_identity::fake::FakeSigner;
use isthmus_identity::{CertSource as _, Manager, manager};
use isthmus_kit::hbone::client;
use isthmus_kit::lab;
use isthmus_kit::tls;
use isthmus_kit::two_nodes::{TwoNodes, VIP};
use isthmus_model::SpiffeId;
use isthmus_sys::socket::{ConnectError, Sockets};
use tokio::io::AsyncReadExt as _;

use super::{SOON, serve};

const WORDS: &[u8] = b"some words of a neighbour";
const HBONE: u16 = 15008;

/// The warnings and errors about connections from a host.
fn complaints(log: &str, from: IpAddr) -> Vec<&str> {
    let source = if from.is_ipv4() { format!("src.addr={from}:") } else { format!("src.addr=[{from}]:") };
    log.lines().filter(|line| line.contains(&source) && line.contains("error=")).collect()
}

/// Checks that each of these connections has one line with the expected parts.
fn one_line_each(log: &str, from: IpAddr, expected: &[(String, &str)]) -> Result<()> {
    let mut lines = complaints(log, from);
    for (destination, reason) in expected {
        let fits = |line: &&str| line.contains(&format!("dst.addr={destination} ")) && line.contains(reason);
        let at = lines.iter().position(fits);
        let at = at.with_context(|| format!("no line with {destination} and {reason:?} in\n{log}"))?;
        lines.remove(at);
    }
    ensure!(lines.is_empty(), "more was said:\n{}", lines.join("\n"));
    Ok(())
}

/// A connection is reset, perhaps before the client sees it established.
async fn is_cut(from: &Sockets, to: SocketAddr) -> Result<()> {
    let mut stream = match from.connect(to, None, SOON).await {
        Ok(stream) => stream,
        Err(ConnectError::Other { cause, .. }) if cause.kind() == ErrorKind::ConnectionReset => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let end = tokio::time::timeout(SOON, stream.read(&mut [0; 1])).await;
    let end = end.with_context(|| format!("{to} stays open"))?;
    ensure!(end.is_err(), "{to}: it ended as if all were well");
    Ok(())
}

pub(crate) fn an_invalid_request_is_refused_with_its_status_and_one_log_line() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        let local = lab.local("");
        let (client_agent, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        // A foreign client with a valid identity and arbitrary requests.
        let certs = Manager::new(Arc::new(FakeSigner::new()), manager::Config::default(), &lab.tasks);
        let id = |account: &str| -> Result<SpiffeId> {
            Ok(format!("spiffe://cluster.local/ns/ns/sa/{account}").parse()?)
        };
        let certificate = certs.certificate(&id("stranger")?).await?;
        let (server, other) = (lab.server.v4, lab.client.v4);
        let host = "echo.ns.svc.cluster.local";
        let cases = [
            ("nonsense".to_owned(), 400, "no valid authority pseudo header: nonsense".to_owned()),
            (format!("{server}"), 400, format!("no valid authority pseudo header: {server}")),
            (format!("{server}:http"), 400, "no valid authority pseudo header".to_owned()),
            (format!("{other}:8080"), 400, format!("ip mismatch: {server} != {other}")),
            ("127.0.0.1:8080".to_owned(), 400, format!("ip mismatch: {server} != 127.0.0.1")),
            (
                "unknown.ns.svc.cluster.local:80".to_owned(),
                503,
                "no service or workload for hostname".to_owned(),
            ),
            (
                format!("{host}:81"),
                503,
                format!("requested service {host}:81 found, but cannot resolve port"),
            ),
            (format!("{server}:15001"), 503, "attempted recursive call to ourselves".to_owned()),
            (format!("{server}:15006"), 503, "attempted recursive call to ourselves".to_owned()),
            (format!("{server}:15008"), 503, "attempted recursive call to ourselves".to_owned()),
            (format!("{server}:15053"), 503, "attempted recursive call to ourselves".to_owned()),
        ];
        let to = SocketAddr::new(server.into(), HBONE);
        let mut expected = Vec::new();
        for (authority, status, reason) in &cases {
            let tcp = lab.outsider.sockets().connect(to, None, SOON).await?;
            let tls = tls::connect(certificate.client_tls(&[id("server")?]).config(), tcp).await?;
            let forged = [("x-forwarded-network", "elsewhere"), ("forwarded", "for=\"10.0.0.1:1\"")];
            let (got, _peer) = client::connect(tls, authority, &forged).await?;
            ensure!(got == *status, "{authority}: {got}");
            expected.push((to.to_string(), reason.as_str()));
            ensure!(lab.exchange(&lab.client, VIP, WORDS).await? == WORDS, "after {authority}");
        }
        client_agent.stop()?;
        one_line_each(&server_agent.stop()?, lab.outsider.v4.into(), &expected)
    })
}

pub(crate) fn an_unroutable_connection_is_closed_with_one_log_line() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        let service = |name: &str, vip: &str| {
            format!(
                "- {{name: {name}, namespace: ns, hostname: {name}.ns.svc.cluster.local, vips: [net1/{vip}], \
                 ports: {{80: 8080}}, subjectAltNames: ['spiffe://cluster.local/ns/ns/sa/{name}']}}\n"
            )
        };
        let far = |name: &str, gateway: String| {
            format!(
                "- {{uid: net2/SplitHorizonWorkload/{name}, name: {name}, namespace: ns, serviceAccount: {name}, \
                 network: net2, workloadIps: [], protocol: HBONE, \
                 networkGateway: {{destination: net2/{gateway}, hboneMtlsPort: 15008}}, \
                 services: {{ns/{name}.ns.svc.cluster.local: {{80: 8080}}}}}}\n"
            )
        };
        // The gateway of one network is unknown; that of the other has no listener.
        let gateway = format!(
            "- {{uid: gw, name: gw, namespace: istio-system, serviceAccount: gw, network: net2, \
             workloadIps: [{}], protocol: HBONE, services: {{}}}}\n",
            lab.outsider.v4
        );
        let more = [service("empty", "10.96.0.2"), service("far", "10.96.0.3"), service("dark", "10.96.0.4")];
        let workloads =
            [far("far", "192.0.2.1".to_owned()), far("dark", lab.outsider.v4.to_string()), gateway].concat();
        let local =
            lab.local(&more.concat()).replacen("services:\n-", &format!("{workloads}services:\n-"), 1);
        let (client_agent, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        let gateway_port = SocketAddr::new(lab.outsider.v4.into(), HBONE);
        let mut expected = Vec::new();
        for (to, seen, reason) in [
            ("10.96.0.2:80", "10.96.0.2:80".to_owned(), "no healthy upstream: 10.96.0.2:80"),
            ("10.96.0.3:80", "10.96.0.3:80".to_owned(), "unknown network gateway: net2/192.0.2.1"),
            ("10.96.0.4:80", gateway_port.to_string(), "refused"),
            // Directly to the outbound listener: the destination is the agent itself.
            ("127.0.0.1:15001", "127.0.0.1:15001".to_owned(), "attempted recursive call to ourselves"),
        ] {
            let to: SocketAddr = to.parse()?;
            is_cut(&lab.client.sockets(), to).await?;
            let source = if to.ip().is_loopback() { to.ip() } else { lab.client.v4.into() };
            expected.push((source, seen, reason));
            ensure!(lab.exchange(&lab.client, VIP, WORDS).await? == WORDS, "after {to}");
        }
        server_agent.stop()?;
        let log = client_agent.stop()?;
        for from in [IpAddr::from(lab.client.v4), "127.0.0.1".parse()?] {
            let of: Vec<_> = expected.iter().filter(|(source, ..)| *source == from).collect();
            let of: Vec<_> = of.into_iter().map(|(_, seen, reason)| (seen.clone(), *reason)).collect();
            one_line_each(&log, from, &of)?;
        }
        Ok(())
    })
}

pub(crate) fn the_agents_own_ports_are_not_reachable_as_an_application() -> Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        for at in [IpAddr::from(lab.server.v4), lab.server.v6.into()] {
            lab::echo(&lab.server.sockets(), SocketAddr::new(at, 8080), &lab.tasks)?;
        }
        let local = lab.local("");
        let (client_agent, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        let mut expected = Vec::new();
        for port in [15001, 15006, 15053] {
            let to = SocketAddr::new(lab.server.v4.into(), port);
            is_cut(&lab.outsider.sockets(), to).await?;
            expected.push((to.to_string(), "attempted recursive call to ourselves"));
            ensure!(lab.exchange(&lab.client, VIP, WORDS).await? == WORDS, "after {to}");
        }
        // Plaintext that is routed here for another destination is not forwarded.
        let stray: SocketAddr = "192.0.2.9:8080".parse()?;
        isthmus_sys::route::add_route(
            &lab.outsider.netns,
            "192.0.2.9/32".parse()?,
            Some(lab.server.v4.into()),
            Some("eth0"),
        )?;
        is_cut(&lab.outsider.sockets(), stray).await?;
        expected
            .push((stray.to_string(), "ip mismatch: 192.0.2.9:8080 is not an address of server.ns (server)"));
        client_agent.stop()?;
        one_line_each(&server_agent.stop()?, lab.outsider.v4.into(), &expected)
    })
}
