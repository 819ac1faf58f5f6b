//! The agent by itself, as ztunnel would be run on two nodes: a scripted node role on the ZDS socket, the local YAML file,
//! the fake CA. What a client sends reaches the server, and the wire between them carries TLS on 15008 only.

use std::net::SocketAddr;

use anyhow::ensure;
use isthmus_kit::lab::{self, Host};
use isthmus_kit::probe;
use isthmus_kit::two_nodes::{Agent, VIP, World};
use isthmus_kit::zds::ZdsPeer;
use isthmus_node::rules::{self, PodRules};
use isthmus_sys::capture::Capture;

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
        bad_local_configuration_is_named_and_ends_the_process,
        a_policy_lets_only_its_principal_in
    ])
}

/// An agent that serves one pod, the node role's rules and all.
async fn serve(
    world: &World,
    at: usize,
    pod: &Host,
    name: &str,
    local: &str,
) -> anyhow::Result<(Agent, ZdsPeer)> {
    let rules = PodRules { dns_capture: false, ..PodRules::default() };
    world.serve(at, pod, name, local, |netns| Ok(rules::apply_pod(netns, &rules)?)).await
}

fn two_agents_carry_a_pods_traffic_as_hbone() -> anyhow::Result<()> {
    let world = World::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(world.server.v4.into(), 8080);
        lab::echo(&world.server.sockets(), app, &world.tasks)?;
        let wire = Capture::open(&world.server.netns, "eth0")?;
        ensure!(
            world.exchange(&world.outsider, app, SECRET).await? == SECRET,
            "the application does not answer"
        );
        ensure!(probe::contains(&wire.drain(), SECRET), "the control failed: plaintext was not seen");

        let local = world.local("");
        let (client_agent, _zds0) = serve(&world, 0, &world.client, "client", &local).await?;
        let (server_agent, _zds1) = serve(&world, 1, &world.server, "server", &local).await?;
        let _ = wire.drain();
        for to in [VIP, app] {
            ensure!(world.exchange(&world.client, to, SECRET).await? == SECRET, "{to} did not answer");
        }
        let frames = wire.drain();
        ensure!(!probe::contains(&frames, SECRET), "the payload was seen in plain text");
        ensure!(probe::tls_bytes(&frames, 15008) >= 4 * SECRET.len(), "no TLS records on 15008");
        ensure!(probe::syns(&frames, 8080) == 0, "a connection to the application's port left the client");

        what_the_admin_endpoints_say(&world).await?;
        no_family_of_the_reference_is_missing(&world, app).await?;
        for agent in [client_agent, server_agent] {
            let log = agent.stop()?;
            ensure!(log.contains("connection complete"), "no access log line in\n{log}");
            ensure!(log.contains(CLIENT_IDENTITY), "no identity in\n{log}");
        }
        Ok(())
    })
}

async fn what_the_admin_endpoints_say(world: &World) -> anyhow::Result<()> {
    let ready = probe::get(&world.nodes[1].netns, "127.0.0.1:15021", "/healthz/ready").await?;
    ensure!(ready.status == 200 && ready.body == "ready\n", "{ready:?}");
    let metrics = probe::get(&world.nodes[1].netns, "127.0.0.1:15020", "/metrics").await?;
    let opened = metrics.body.lines().find(|line| {
        line.starts_with("istio_tcp_connections_opened_total{reporter=\"destination\"")
            && line.contains("source_principal=\"spiffe://cluster.local/ns/ns/sa/client\"")
            && line.contains("connection_security_policy=\"mutual_tls\"")
    });
    ensure!(opened.is_some_and(|line| line.ends_with(" 2")), "{}", metrics.body);
    let dump = probe::get(&world.nodes[0].netns, "127.0.0.1:15000", "/config_dump").await?;
    let dump: serde_json::Value = serde_json::from_str(&dump.body)?;
    ensure!(dump["workloads"].as_array().map(Vec::len) == Some(2), "{dump}");
    ensure!(dump["workloadState"]["client"]["state"] == "Up", "{dump}");
    ensure!(dump["certificates"][0]["state"] == "Available", "{dump}");
    Ok(())
}

/// What has no series here (xDS, CRL, durations of servers that answer) is held against its labels where it is counted.
async fn no_family_of_the_reference_is_missing(world: &World, app: SocketAddr) -> anyhow::Result<()> {
    // Nobody listens there, and no DNS server can be reached.
    let nobody = SocketAddr::new(app.ip(), 9);
    ensure!(world.exchange(&world.client, nobody, SECRET).await.is_err(), "{nobody} answered");
    let asker = world.client.sockets().udp(([127, 0, 0, 1], 0).into())?;
    let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01";
    asker.send_to(query, ("127.0.0.1", 15053)).await?;
    let mut answer = [0; 512];
    let (length, _) =
        tokio::time::timeout(std::time::Duration::from_secs(60), asker.recv_from(&mut answer)).await??;
    ensure!(answer[..length][3] & 15 == 2, "a server failure was expected: {:?}", &answer[..length]);

    let mut text = String::new();
    for node in &world.nodes {
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

fn a_policy_lets_only_its_principal_in() -> anyhow::Result<()> {
    let world = World::new()?;
    lab::block_on(async {
        let app = SocketAddr::new(world.server.v4.into(), 8080);
        lab::echo(&world.server.sockets(), app, &world.tasks)?;
        for (principal, allowed) in
            [("cluster.local/ns/ns/sa/client", true), ("cluster.local/ns/ns/sa/other", false)]
        {
            let policy = format!(
                "policies:\n- name: only\n  namespace: ns\n  scope: Namespace\n  action: Allow\n  \
                 rules: [[[{{principals: [!Exact {principal}]}}]]]\n"
            );
            let local = world.local(&policy);
            let (client_agent, _zds0) = serve(&world, 0, &world.client, "client", &local).await?;
            let (server_agent, _zds1) = serve(&world, 1, &world.server, "server", &local).await?;
            let answer = world.exchange(&world.client, VIP, SECRET).await;
            ensure!(
                answer.is_ok_and(|bytes| bytes == SECRET) == allowed,
                "{principal}: allowed is not {allowed}"
            );
            let plain = world.exchange(&world.outsider, app, SECRET).await;
            ensure!(!plain.is_ok_and(|bytes| bytes == SECRET), "plaintext has no identity and must not pass");
            client_agent.stop()?;
            let log = server_agent.stop()?;
            let denied = |line: &str| line.contains(CLIENT_IDENTITY) && line.contains("allow policies exist");
            ensure!(log.lines().any(denied) != allowed, "{log}");
            for at in 0..2 {
                std::fs::remove_file(world.socket(at))?;
            }
        }
        Ok(())
    })
}

fn bad_local_configuration_is_named_and_ends_the_process() -> anyhow::Result<()> {
    let world = World::new()?;
    let agent = world.agent(0, "workloads:\n- {workloadIp: [10.0.0.1], namespace: ns, services: {}}\n")?;
    let ended = agent.ended()?;
    ensure!(ended.status.code() == Some(64), "{ended:?}");
    ensure!(ended.error.contains("workloadIp") && ended.error.contains("LOCAL_XDS"), "{ended:?}");
    ensure!(!world.socket(0).exists(), "something was touched");
    Ok(())
}
