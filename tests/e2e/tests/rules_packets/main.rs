//! Real packets through the rules: what is redirected, what is not, and that removal restores a pod's namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_kit::lab::{self, Host, Lan};
use isthmus_node::rules::{self, AGENT_MARK, HostRules, PROBE_V4, PROBE_V6, PodRules};
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{self, Family, Ruleset};
use isthmus_sys::socket::{Sockets, Transparent, canonical, original_dst};
use isthmus_sys::{route, sysctl};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

mod apart;
mod canaries;
mod compared;
mod established;
mod host;
mod rewritten;
mod routing;

fn main() -> ExitCode {
    lab::main(&lab::tests![
        outbound_tcp_goes_to_the_agent,
        packets_of_the_agent_are_not_redirected,
        inbound_plaintext_goes_to_15006_and_hbone_to_15008,
        loopback_and_the_pods_own_address_are_not_redirected,
        dns_goes_to_the_dns_proxy_and_other_udp_does_not,
        without_dns_capture_queries_are_not_redirected,
        an_ingress_receives_its_inbound_traffic_directly,
        traffic_from_a_virtual_interface_is_outbound,
        the_guard_drops_what_is_not_redirected,
        apart::the_agents_connections_do_not_meet_the_clients,
        apart::a_guest_behind_a_bridge_answers_the_agent,
        apart::a_query_from_port_53_is_answered,
        established::connections_older_than_enrolment_go_on_and_new_ones_are_captured,
        established::only_connections_older_than_enrolment_pass,
        established::no_new_connection_takes_the_place_of_an_older_one,
        established::connections_that_the_agent_carries_outlive_the_redirection,
        established::a_pod_that_comes_back_keeps_what_it_has,
        established::queries_of_an_open_socket_follow_the_pod,
        canaries::a_canary_is_answered_and_never_accepted,
        canaries::a_canary_that_is_not_redirected_stays_in_the_pod,
        canaries::an_ingress_answers_its_clients_while_it_is_closed,
        compared::each_table_and_route_that_is_lost_is_noticed,
        compared::what_others_add_is_no_loss,
        compared::a_pod_without_ipv6_lacks_nothing_of_ipv6,
        host::packets_from_the_probes_address_do_not_enter_the_host,
        host::frames_from_the_probes_address_do_not_cross_a_bridge,
        host::known_members_stay_beside_new_ones,
        rewritten::probes_of_the_kubelet_reach_the_application,
        rewritten::other_traffic_from_the_node_is_redirected,
        rewritten::probes_work_without_an_agent_in_either_direction,
        routing::answers_to_a_preserved_client_address_return_to_the_agent,
        routing::applying_twice_changes_nothing,
        routing::removing_the_rules_restores_the_namespace,
        routing::a_smaller_rule_set_replaces_a_larger_one,
        routing::a_pod_without_ipv6_is_redirected_over_ipv4,
    ])
}

/// Longest wait for what must happen.
const SOON: Duration = Duration::from_secs(5);
/// Wait for what must not happen.
const NEVER: Duration = Duration::from_millis(400);

/// A pod, its agent, and a peer on the network.
struct PacketLab {
    lan: Lan,
    pod: Host,
    peer: Host,
}

impl PacketLab {
    fn new() -> anyhow::Result<Self> {
        let lan = Lan::new()?;
        let (pod, peer) = (lan.host()?, lan.host()?);
        Ok(Self { lan, pod, peer })
    }

    fn captured(rules: &PodRules) -> anyhow::Result<Self> {
        let lab = Self::new()?;
        rules::apply_pod(&lab.pod.netns, rules)?;
        Ok(lab)
    }

    /// Sockets as an application makes them.
    fn app(&self) -> Sockets {
        self.pod.sockets()
    }

    /// Sockets as the agent makes them.
    fn agent(&self) -> Sockets {
        self.pod.sockets().with_mark(Some(AGENT_MARK))
    }

    /// The peer at a port, over both families.
    fn peer_at(&self, port: u16) -> [SocketAddr; 2] {
        [(self.peer.v4, port).into(), (self.peer.v6, port).into()]
    }

    /// The pod at a port, over both families.
    fn pod_at(&self, port: u16) -> [SocketAddr; 2] {
        [(self.pod.v4, port).into(), (self.pod.v6, port).into()]
    }
}

fn listener(sockets: &Sockets, port: u16) -> anyhow::Result<TcpListener> {
    Ok(sockets.listen_wildcard(port, Transparent::BestEffort)?.0)
}

/// A connection arrives at `at` with the original destination `to`, and works. Returns its source.
async fn arrives(from: &Sockets, to: SocketAddr, at: &TcpListener) -> anyhow::Result<SocketAddr> {
    let accept =
        async { Ok(tokio::time::timeout(SOON, at.accept()).await.context("no connection arrives")??) };
    let connect = async { Ok::<_, anyhow::Error>(from.connect(to, None, SOON).await?) };
    let (dialled, (accepted, caller)) = tokio::try_join!(connect, accept)?;
    // Without conntrack (loopback included, once rules are in) there is no original destination but the address itself.
    let meant = original_dst(&accepted).unwrap_or(canonical(accepted.local_addr()?));
    ensure!(meant == to, "meant for {meant}, not {to}");
    talk(dialled, accepted).await?;
    Ok(canonical(caller))
}

async fn talk(dialled: TcpStream, accepted: TcpStream) -> anyhow::Result<()> {
    let (mut read, mut write) = accepted.into_split();
    let echo = async { Ok(tokio::io::copy(&mut read, &mut write).await.map(|_| drop(write))?) };
    let (answer, ()) = tokio::try_join!(lab::exchange(dialled, b"ping"), echo)?;
    ensure!(answer == b"ping", "{answer:?}");
    Ok(())
}

fn outbound_tcp_goes_to_the_agent() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let outbound = listener(&lab.agent(), 15001)?;
        // Also ports without a listener, and addresses without a host.
        let elsewhere =
            ["198.51.100.1:80".parse()?, "[2001:db8::1]:80".parse()?, "198.51.100.1:15001".parse()?];
        for to in lab.peer_at(8080).into_iter().chain(elsewhere) {
            let caller = arrives(&lab.app(), to, &outbound).await?;
            ensure!(lab.pod_at(caller.port()).contains(&caller), "{caller}");
        }
        Ok(())
    })
}

fn packets_of_the_agent_are_not_redirected() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        for port in [8080, 53] {
            let service = listener(&lab.peer.sockets(), port)?;
            for to in lab.peer_at(port) {
                arrives(&lab.agent(), to, &service).await?;
            }
        }
        Ok(())
    })
}

fn inbound_plaintext_goes_to_15006_and_hbone_to_15008() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let (plaintext, hbone) = (listener(&lab.agent(), 15006)?, listener(&lab.agent(), 15008)?);
        let _app = listener(&lab.app(), 8080)?;
        for from in [lab.peer.sockets(), lab.lan.sockets()] {
            for to in lab.pod_at(8080) {
                arrives(&from, to, &plaintext).await?;
            }
            for to in lab.pod_at(15008) {
                arrives(&from, to, &hbone).await?;
            }
        }
        Ok(())
    })
}

fn loopback_and_the_pods_own_address_are_not_redirected() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let app = listener(&lab.app(), 8080)?;
        let loopback = [(Ipv4Addr::LOCALHOST, 8080).into(), (Ipv6Addr::LOCALHOST, 8080).into()];
        for to in loopback.into_iter().chain(lab.pod_at(8080)) {
            arrives(&lab.app(), to, &app).await?;
        }
        Ok(())
    })
}

/// A query from the application to `to` arrives at `at`, and the answer comes from `to`.
async fn is_answered(app: &Sockets, to: SocketAddr, at: &UdpSocket) -> anyhow::Result<()> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let query = app.udp((any, 0).into())?;
    // A connected socket receives only from its peer: the answer must have that source.
    query.connect(to).await?;
    query.send(b"query").await?;
    let talk = async {
        let mut buffer = [0; 16];
        let (len, from) = at.recv_from(&mut buffer).await?;
        ensure!(&buffer[..len] == b"query");
        at.send_to(b"answer", from).await?;
        let len = query.recv(&mut buffer).await?;
        ensure!(&buffer[..len] == b"answer");
        Ok(())
    };
    tokio::time::timeout(SOON, talk).await.with_context(|| format!("no answer from {to}"))?
}

fn dns_goes_to_the_dns_proxy_and_other_udp_does_not() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        let elsewhere = [IpAddr::from([198, 51, 100, 53]), "2001:db8::53".parse()?];
        for ((local, to), away) in loopback.into_iter().zip(lab.peer_at(53)).zip(elsewhere) {
            let proxy = lab.agent().udp((local, 15053).into())?;
            is_answered(&lab.app(), to, &proxy).await?;
            is_answered(&lab.app(), (away, 53).into(), &proxy).await?;
            let (tcp, _) = lab.agent().listen((local, 15053).into(), Transparent::Never)?;
            arrives(&lab.app(), to, &tcp).await?;
            // The agent's own queries, and UDP that is not DNS.
            let server = lab.peer.sockets().udp(to)?;
            is_answered(&lab.agent(), to, &server).await?;
            let other = lab.peer.sockets().udp((to.ip(), 54).into())?;
            is_answered(&lab.app(), (to.ip(), 54).into(), &other).await?;
        }
        Ok(())
    })
}

fn without_dns_capture_queries_are_not_redirected() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules { dns_capture: false, ..PodRules::default() })?;
        let outbound = listener(&lab.agent(), 15001)?;
        for to in lab.peer_at(53) {
            let server = lab.peer.sockets().udp(to)?;
            is_answered(&lab.app(), to, &server).await?;
            arrives(&lab.app(), to, &outbound).await?;
        }
        Ok(())
    })
}

fn an_ingress_receives_its_inbound_traffic_directly() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules { ingress_mode: true, ..PodRules::default() })?;
        let (app, outbound) = (listener(&lab.app(), 8080)?, listener(&lab.agent(), 15001)?);
        for to in lab.pod_at(8080) {
            arrives(&lab.peer.sockets(), to, &app).await?;
        }
        for to in lab.peer_at(8080) {
            arrives(&lab.app(), to, &outbound).await?;
        }
        Ok(())
    })
}

fn traffic_from_a_virtual_interface_is_outbound() -> anyhow::Result<()> {
    lab::block_on(async {
        let rules = PodRules { virtual_interfaces: vec!["vm0".to_owned()], ..PodRules::default() };
        let lab = PacketLab::captured(&rules)?;
        let guest = std::sync::Arc::new(Netns::create()?);
        lab::veth(
            (&lab.pod.netns, "vm0", &["10.88.0.1/24".parse()?]),
            (&guest, "eth0", &["10.88.0.2/24".parse()?]),
        )?;
        route::add_route(&guest, "0.0.0.0/0".parse()?, Some("10.88.0.1".parse()?), None)?;
        let (outbound, plaintext) = (listener(&lab.agent(), 15001)?, listener(&lab.agent(), 15006)?);
        let [to, _] = lab.peer_at(8080);
        let caller = arrives(&Sockets::in_netns(guest), to, &outbound).await?;
        ensure!(caller.ip().to_string() == "10.88.0.2", "{caller}");
        // Other interfaces are unaffected.
        let [to, _] = lab.pod_at(8080);
        arrives(&lab.peer.sockets(), to, &plaintext).await?;
        Ok(())
    })
}

fn the_guard_drops_what_is_not_redirected() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules { closing: true, ..PodRules::default() })?;
        let tasks = Tasks::new("test");
        let outbound = listener(&lab.agent(), 15001)?;
        let wire = Capture::open(&lab.peer.netns, "eth0")?;
        let peers = lab.peer_at(8080);
        for to in peers {
            lab::echo(&lab.peer.sockets(), to, &tasks)?;
            // With the other rules in place the guard has no effect.
            arrives(&lab.app(), to, &outbound).await?;
        }
        nft::remove(&lab.pod.netns, &[(Family::Inet, "istio-ambient-nat".to_owned())])?;
        for to in peers {
            let failed = lab.app().connect(to, None, NEVER).await;
            ensure!(failed.is_err(), "plaintext left the pod for {to}");
            lab::exchange(lab.agent().connect(to, None, SOON).await?, b"ping").await?;
        }
        let from_agent = wire.drain().iter().filter(|frame| is_syn(frame)).count();
        ensure!(from_agent == peers.len(), "{from_agent} connections left the pod");
        // Without the guard the same plaintext leaves the pod.
        nft::remove(&lab.pod.netns, &[(Family::Inet, "isthmus-guard".to_owned())])?;
        for to in peers {
            lab::exchange(lab.app().connect(to, None, SOON).await?, b"ping").await?;
        }
        ensure!(wire.drain().iter().filter(|frame| is_syn(frame)).count() == peers.len());
        Ok(())
    })
}

/// Whether an Ethernet frame opens a TCP connection.
fn is_syn(frame: &[u8]) -> bool {
    const ETHERNET: usize = 14;
    let tcp = match (frame.get(12..14), frame.get(ETHERNET)) {
        (Some([0x08, 0x00]), Some(first)) if frame.get(ETHERNET + 9) == Some(&6) => {
            ETHERNET + usize::from(first & 0xf) * 4
        }
        (Some([0x86, 0xdd]), _) if frame.get(ETHERNET + 6) == Some(&6) => ETHERNET + 40,
        _ => return false,
    };
    frame.get(tcp + 13).is_some_and(|flags| flags & 0x12 == 0x02)
}
