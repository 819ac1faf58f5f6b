//! The agent alone, run as ztunnel would be on two nodes: a scripted node role on the ZDS socket, the mesh from a local
//! YAML file, the fake CA. What a client sends reaches the server, and the wire between them carries only TLS on 15008.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::ensure;
use isthmus_kit::lab::{self, Host};
use isthmus_kit::probe;
use isthmus_kit::two_nodes::{Agent, TwoNodes, VIP};
use isthmus_kit::zds::ZdsPeer;
use isthmus_node::rules::{self, PodRules};
use isthmus_sys::capture::Capture;
use isthmus_sys::route;
use isthmus_sys::socket::Transparent;

const SOON: Duration = Duration::from_secs(10);
const SECRET: &[u8] = b"the answer of the application, in plain words";
/// The metrics of ztunnel: name, type and labels. `T` are those of a connection, `D` those of a DNS query.
const FAMILIES: &str = "\
istio_tcp_connections_opened counter T
istio_tcp_connections_closed counter T
istio_tcp_connections_failed counter T
istio_tcp_sent_bytes counter T
istio_tcp_received_bytes counter T
istio_tcp_sockets_open gauge reporter
istio_dns_requests counter D
istio_dns_upstream_requests counter D
istio_dns_upstream_failures counter D
istio_build gauge component tag
workload_manager_active_proxy_count gauge
workload_manager_pending_proxy_count gauge
workload_manager_proxies_started counter
workload_manager_proxies_stopped counter
process_open_fds gauge
process_max_fds gauge
tokio_num_workers gauge
tokio_global_queue_depth gauge
tokio_num_alive_tasks gauge
tokio_worker_total_busy_duration_seconds counter worker
tokio_worker_park_count counter worker
tokio_worker_park_unpark_count counter worker";

const CONNECTION: &str = "reporter source_workload source_canonical_service source_canonical_revision \
source_workload_namespace source_principal source_app source_version source_cluster destination_service \
destination_service_namespace destination_service_name destination_workload destination_canonical_service \
destination_canonical_revision destination_workload_namespace destination_principal destination_app \
destination_version destination_cluster request_protocol response_flags connection_security_policy source_region \
source_zone destination_region destination_zone";

const QUERY: &str = "request_query_type request_protocol source_canonical_service source_canonical_revision";

const CLIENT_IDENTITY: &str = "src.identity=\"spiffe://cluster.local/ns/ns/sa/client\"";

fn main() -> std::process::ExitCode {
    lab::main_with_programs(&lab::tests![
        two_agents_carry_a_pods_traffic_as_hbone,
        a_bad_local_configuration_is_named_and_the_process_exits,
        a_policy_admits_only_its_principal,
        addresses_that_kubernetes_does_not_list_work_in_both_directions
    ])
}

/// An agent that serves one pod, with the node role's rules in the pod's namespace.
async fn serve(
    lab: &TwoNodes,
    at: usize,
    pod: &Host,
    name: &str,
    local: &str,
) -> anyhow::Result<(Agent, ZdsPeer)> {
    let rules = PodRules { dns_capture: false, ..PodRules::default() };
    lab.serve(at, pod, name, local, |netns| Ok(rules::apply_pod(netns, &rules)?)).await
}

fn two_agents_carry_a_pods_traffic_as_hbone() -> anyhow::Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        let wire = Capture::open(&lab.server.netns, "eth0")?;
        ensure!(lab.exchange(&lab.outsider, app, SECRET).await? == SECRET, "the application does not answer");
        ensure!(probe::contains(&wire.drain(), SECRET), "the control failed: plaintext was not seen");

        let local = lab.local("");
        let (client_agent, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        let _ = wire.drain();
        for to in [VIP, app] {
            ensure!(lab.exchange(&lab.client, to, SECRET).await? == SECRET, "{to} did not answer");
        }
        let frames = wire.drain();
        ensure!(!probe::contains(&frames, SECRET), "the payload was seen in plain text");
        ensure!(probe::tls_bytes(&frames, 15008) >= 4 * SECRET.len(), "no TLS records on 15008");
        ensure!(probe::syns(&frames, 8080) == 0, "a connection to the application's port left the client");

        admin_endpoints_show_the_pods_and_certificates(&lab).await?;
        every_metric_family_of_ztunnel_is_exposed(&lab, app).await?;
        for agent in [client_agent, server_agent] {
            let log = agent.stop()?;
            ensure!(log.contains("connection complete"), "no access log line in\n{log}");
            ensure!(log.contains(CLIENT_IDENTITY), "no identity in\n{log}");
        }
        Ok(())
    })
}

async fn admin_endpoints_show_the_pods_and_certificates(lab: &TwoNodes) -> anyhow::Result<()> {
    let ready = probe::get(&lab.nodes[1].netns, "127.0.0.1:15021", "/healthz/ready").await?;
    ensure!(ready.status == 200 && ready.body == "ready\n", "{ready:?}");
    let metrics = probe::get(&lab.nodes[1].netns, "127.0.0.1:15020", "/metrics").await?;
    let opened = metrics.body.lines().find(|line| {
        line.starts_with("istio_tcp_connections_opened_total{reporter=\"destination\"")
            && line.contains("source_principal=\"spiffe://cluster.local/ns/ns/sa/client\"")
            && line.contains("connection_security_policy=\"mutual_tls\"")
    });
    ensure!(opened.is_some_and(|line| line.ends_with(" 2")), "{}", metrics.body);
    let dump = probe::get(&lab.nodes[0].netns, "127.0.0.1:15000", "/config_dump").await?;
    let dump: serde_json::Value = serde_json::from_str(&dump.body)?;
    ensure!(dump["workloads"].as_array().map(Vec::len) == Some(2), "{dump}");
    ensure!(dump["workloadState"]["client"]["state"] == "Up", "{dump}");
    ensure!(dump["certificates"][0]["state"] == "Available", "{dump}");
    Ok(())
}

/// What has no series here (xDS, CRL, durations of servers that answer) is held against its labels where it is counted.
async fn every_metric_family_of_ztunnel_is_exposed(lab: &TwoNodes, app: SocketAddr) -> anyhow::Result<()> {
    // No listener on that port, and no reachable DNS server.
    let unused = SocketAddr::new(app.ip(), 9);
    ensure!(lab.exchange(&lab.client, unused, SECRET).await.is_err(), "{unused} answered");
    let asker = lab.client.sockets().udp(([127, 0, 0, 1], 0).into())?;
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";
    asker.send_to(query, ("127.0.0.1", 15053)).await?;
    let mut answer = [0; 512];
    let (length, _) = tokio::time::timeout(Duration::from_secs(60), asker.recv_from(&mut answer)).await??;
    ensure!(answer[..length][3] & 15 == 2, "a server failure was expected: {:?}", &answer[..length]);

    let mut text = String::new();
    for node in &lab.nodes {
        text.push_str(&probe::get(&node.netns, "127.0.0.1:15020", "/stats/prometheus").await?.body);
    }
    for family in FAMILIES.lines() {
        let mut words = family.split(' ');
        let (name, kind) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let declared = format!("# TYPE {name} {kind}");
        ensure!(text.lines().any(|line| line == declared), "{declared:?} is missing in\n{text}");
        let wanted: Vec<&str> = match words.clone().next() {
            Some("T") => CONNECTION.split(' ').collect(),
            Some("D") => QUERY.split(' ').collect(),
            _ => words.collect(),
        };
        let series = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let of = |line: &&str| line.strip_prefix(&series).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let shown =
            text.lines().find(of).ok_or_else(|| anyhow::anyhow!("{series} has no series in\n{text}"))?;
        ensure!(labels(shown) == wanted, "{series} has the labels {:?}", labels(shown));
    }
    Ok(())
}

/// The names of the labels of a series, in order.
fn labels(line: &str) -> Vec<&str> {
    let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}'));
    let pairs = inside.map_or("", |(inside, _)| inside).split("\",").filter(|pair| !pair.is_empty());
    pairs.filter_map(|pair| pair.split_once("=\"")).map(|(name, _)| name).collect()
}

fn a_policy_admits_only_its_principal() -> anyhow::Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(lab.server.v4.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        for (principal, allowed) in
            [("cluster.local/ns/ns/sa/client", true), ("cluster.local/ns/ns/sa/other", false)]
        {
            let policy = format!(
                "policies:\n- name: only\n  namespace: ns\n  scope: Namespace\n  action: Allow\n  \
                 rules: [[[{{principals: [!Exact {principal}]}}]]]\n"
            );
            let local = lab.local(&policy);
            let (client_agent, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
            let (server_agent, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
            let answer = lab.exchange(&lab.client, VIP, SECRET).await;
            ensure!(
                answer.is_ok_and(|bytes| bytes == SECRET) == allowed,
                "{principal}: allowed is not {allowed}"
            );
            let plain = lab.exchange(&lab.outsider, app, SECRET).await;
            ensure!(!plain.is_ok_and(|bytes| bytes == SECRET), "plaintext has no identity and must not pass");
            client_agent.stop()?;
            let log = server_agent.stop()?;
            let denied = |line: &str| line.contains(CLIENT_IDENTITY) && line.contains("allow policies exist");
            ensure!(log.lines().any(denied) != allowed, "{log}");
            for at in 0..2 {
                std::fs::remove_file(lab.socket(at))?;
            }
        }
        Ok(())
    })
}

fn a_bad_local_configuration_is_named_and_the_process_exits() -> anyhow::Result<()> {
    let lab = TwoNodes::new()?;
    let agent = lab.agent(0, "workloads:\n- {workloadIp: [10.0.0.1], namespace: ns, services: {}}\n")?;
    let ended = agent.ended()?;
    ensure!(ended.status.code() == Some(64), "{ended:?}");
    ensure!(ended.error.contains("workloadIp") && ended.error.contains("LOCAL_XDS"), "{ended:?}");
    ensure!(!lab.socket(0).exists(), "the socket exists although the start was refused");
    Ok(())
}

/// A virtual address of the server and a second one of the client, known to the kernels of their pods only.
fn addresses_that_kubernetes_does_not_list_work_in_both_directions() -> anyhow::Result<()> {
    let lab = TwoNodes::new()?;
    lab::block_on(async {
        let (vip, second): (Ipv4Addr, Ipv4Addr) = ("192.0.2.77".parse()?, "192.0.2.78".parse()?);
        route::add_address(&lab.server.netns, "lo", format!("{vip}/32").parse()?)?;
        route::add_address(&lab.client.netns, "lo", format!("{second}/32").parse()?)?;
        route::add_route(
            &lab.outsider.netns,
            format!("{vip}/32").parse()?,
            Some(lab.server.v4.into()),
            None,
        )?;
        route::add_route(
            &lab.outsider.netns,
            format!("{second}/32").parse()?,
            Some(lab.client.v4.into()),
            None,
        )?;
        let app = SocketAddr::new(vip.into(), 8080);
        lab::echo(&lab.server.sockets(), app, &lab.tasks)?;
        let outside = lab.outsider.sockets().listen((lab.outsider.v4, 8080).into(), Transparent::Never)?.0;
        let to = outside.local_addr()?;
        let from_second = async || {
            let stream = lab.client.sockets().connect_from_local(to, second.into(), SOON).await?;
            let (_, from) = tokio::time::timeout(SOON, outside.accept()).await??;
            drop(stream);
            anyhow::Ok(from.ip())
        };
        ensure!(
            lab.exchange(&lab.outsider, app, SECRET).await? == SECRET,
            "control: the server does not answer"
        );
        ensure!(from_second().await? == IpAddr::from(second), "control: the source is another");

        let local = lab.local("");
        let (client_agent, _zds0) = serve(&lab, 0, &lab.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&lab, 1, &lab.server, "server", &local).await?;
        ensure!(lab.exchange(&lab.outsider, app, SECRET).await? == SECRET, "the server does not answer");
        let from = from_second().await?;
        ensure!(from == IpAddr::from(second), "the server sees {from}");
        for agent in [client_agent, server_agent] {
            let log = agent.stop()?;
            ensure!(
                log.contains(&format!("{vip}:8080")) || log.contains(&to.to_string()),
                "not captured:\n{log}"
            );
        }
        Ok(())
    })
}
