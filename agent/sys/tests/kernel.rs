//! The crate on a real kernel, inside network namespaces: entering, sockets, addresses, rules, settings. Passes as
//! root and as an ordinary user.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use isthmus_kit::lab;
use isthmus_rt::task::Tasks;
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;
use isthmus_sys::socket::{ConnectError, Sockets, Transparent, original_dst};
use isthmus_sys::{IpNet, limits, nft, route, sysctl};

const SOON: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    lab::main(&lab::tests![
        a_namespace_is_entered_and_left,
        a_panic_inside_a_namespace_returns_the_thread_first,
        sockets_are_made_inside_a_namespace_and_used_outside,
        hosts_of_the_lab_lan_reach_each_other,
        a_foreign_source_address_is_seen_by_the_peer,
        addresses_of_a_namespace_are_local_and_may_be_the_source,
        listeners_are_transparent_and_marked_as_configured,
        rules_and_routes_are_added_and_deleted_idempotently,
        sysctls_are_per_namespace,
        deleting_a_link_is_idempotent,
        a_capture_has_every_frame_of_one_interface,
        conntrack_returns_the_original_destination_of_a_datagram,
    ])
}

fn a_namespace_is_entered_and_left() -> anyhow::Result<()> {
    let (home, other, third) = (Netns::current()?, Netns::create()?, Netns::create()?);
    ensure!(home.id() != other.id() && other.id() != third.id());
    let inside = other.run(|| {
        let nested = third.run(|| std::fs::read_link("/proc/thread-self/ns/net"))??;
        anyhow::Ok((nested, std::fs::read_link("/proc/thread-self/ns/net")?))
    })??;
    ensure!(inside.0.to_string_lossy() == third.id().to_string());
    ensure!(inside.1.to_string_lossy() == other.id().to_string());
    let thread = other.run_thread(|| Netns::current().map(|netns| netns.id()))??;
    ensure!(thread == other.id());
    let after = std::fs::read_link("/proc/thread-self/ns/net")?;
    ensure!(after.to_string_lossy() == home.id().to_string());
    let again = Netns::from_fd(other.fd().try_clone_to_owned()?)?;
    ensure!(again.id() == other.id());
    Ok(())
}

fn a_panic_inside_a_namespace_returns_the_thread_first() -> anyhow::Result<()> {
    let (home, other) = (Netns::current()?, Netns::create()?);
    let caught = std::panic::catch_unwind(|| other.run(|| panic!("on purpose")));
    ensure!(caught.is_err());
    let after = std::fs::read_link("/proc/thread-self/ns/net")?;
    ensure!(after.to_string_lossy() == home.id().to_string());
    Ok(())
}

fn sockets_are_made_inside_a_namespace_and_used_outside() -> anyhow::Result<()> {
    lab::block_on(async {
        let tasks = Tasks::new("test");
        let (one, two) = (Arc::new(Netns::create()?), Arc::new(Netns::create()?));
        let (one, two) = (Sockets::in_netns(one), Sockets::in_netns(two));
        let addr = lab::echo(&one, (Ipv4Addr::LOCALHOST, 7).into(), &tasks)?;
        let answer = lab::exchange(one.connect(addr, None, SOON).await?, b"ping").await?;
        ensure!(answer == b"ping");
        let elsewhere = two.connect(addr, None, SOON).await;
        ensure!(matches!(elsewhere, Err(ConnectError::Refused { .. })), "{elsewhere:?}");
        Ok(())
    })
}

fn hosts_of_the_lab_lan_reach_each_other() -> anyhow::Result<()> {
    lab::block_on(async {
        let tasks = Tasks::new("test");
        let lan = lab::Lan::new()?;
        let (a, b) = (lan.host()?, lan.host()?);
        for ip in [IpAddr::from(b.v4), b.v6.into()] {
            let addr = lab::echo(&b.sockets(), (ip, 8080).into(), &tasks)?;
            for from in [a.sockets(), lan.sockets(), b.sockets()] {
                let answer = lab::exchange(from.connect(addr, None, SOON).await?, b"ping").await?;
                ensure!(answer == b"ping");
            }
        }
        let mine: Vec<_> =
            route::addresses(&a.netns)?.into_iter().filter(|(name, _)| name == "eth0").collect();
        for net in [IpNet::new(a.v4.into(), 24)?, IpNet::new(a.v6.into(), 64)?] {
            ensure!(mine.iter().any(|(_, found)| *found == net), "{net} is not among {mine:?}");
        }
        Ok(())
    })
}

fn a_foreign_source_address_is_seen_by_the_peer() -> anyhow::Result<()> {
    lab::block_on(async {
        let sockets = Sockets::in_netns(Arc::new(Netns::create()?));
        let (listener, _) = sockets.listen((Ipv4Addr::LOCALHOST, 0).into(), Transparent::Never)?;
        let foreign: IpAddr = "127.9.9.9".parse()?;
        let to = listener.local_addr()?;
        let (stream, accepted) = tokio::join!(sockets.connect(to, Some(foreign), SOON), listener.accept());
        ensure!(stream?.local_addr()?.ip() == foreign);
        ensure!(accepted?.1.ip() == foreign);
        // The source port is outside of the range that the owner's kernel chooses from, and unique.
        let mut open = BTreeMap::new();
        for _ in 0..300 {
            let (stream, accepted) =
                tokio::join!(sockets.connect(to, Some(foreign), SOON), listener.accept());
            let (stream, (accepted, source)) = (stream?, accepted?);
            ensure!(source.port() >= 61_000, "it comes from {source}");
            ensure!(open.insert(source, (stream, accepted)).is_none(), "{source} twice");
        }
        // A later listener on one of these ports can still bind.
        for port in 61_000..61_100 {
            sockets.listen((Ipv4Addr::LOCALHOST, port).into(), Transparent::Never)?;
        }
        // The destination's own address as source is ignored.
        let (stream, _) = tokio::join!(sockets.connect(to, Some(to.ip()), SOON), listener.accept());
        ensure!(stream?.local_addr()?.ip() == to.ip());
        // Without redirection there is no original destination.
        let (stream, accepted) = tokio::join!(sockets.connect(to, None, SOON), listener.accept());
        ensure!(original_dst(&stream?).is_none() && original_dst(&accepted?.0).is_none());
        Ok(())
    })
}

fn addresses_of_a_namespace_are_local_and_may_be_the_source() -> anyhow::Result<()> {
    lab::block_on(async {
        let lan = lab::Lan::new()?;
        let (a, b) = (lan.host()?, lan.host()?);
        // A second address of the subnet, and a virtual one that only the route of the other side leads to.
        let (second, virtual_one): (Ipv4Addr, Ipv4Addr) = ("10.77.0.2".parse()?, "192.0.2.77".parse()?);
        route::add_address(&a.netns, "eth0", format!("{second}/24").parse()?)?;
        route::add_address(&b.netns, "eth0", "10.77.0.3/24".parse()?)?;
        route::add_address(&a.netns, "lo", format!("{virtual_one}/32").parse()?)?;
        let own =
            [IpAddr::from(a.v4), a.v6.into(), second.into(), virtual_one.into(), Ipv4Addr::LOCALHOST.into()];
        for ip in own {
            ensure!(a.sockets().is_local(ip), "{ip}");
        }
        let nowhere: IpAddr = "203.0.113.1".parse()?;
        for ip in [IpAddr::from(b.v4), b.v6.into(), nowhere] {
            ensure!(!a.sockets().is_local(ip), "{ip}");
        }
        let listener = b.sockets().listen((b.v4, 8080).into(), Transparent::Never)?.0;
        route::add_route(&b.netns, format!("{second}/32").parse()?, Some(a.v4.into()), None)?;
        let connected = a.sockets().connect_from_local(listener.local_addr()?, second.into(), SOON).await?;
        let (_, from) = listener.accept().await?;
        ensure!(from.ip() == IpAddr::from(second) && connected.local_addr()? == from, "{from}");
        let foreign = a.sockets().connect_from_local(listener.local_addr()?, nowhere, SOON).await;
        ensure!(matches!(foreign, Err(ConnectError::Setup(_))), "{foreign:?}");
        Ok(())
    })
}

fn listeners_are_transparent_and_marked_as_configured() -> anyhow::Result<()> {
    lab::block_on(async {
        ensure!(limits::has_net_admin() && limits::has_sys_admin());
        let sockets = Sockets::in_netns(Arc::new(Netns::create()?)).with_mark(Some(0x539));
        for ipv6 in [true, false] {
            for (wanted, got) in
                [(Transparent::Required, true), (Transparent::BestEffort, true), (Transparent::Never, false)]
            {
                let (_, transparent) = sockets.clone().with_ipv6(ipv6).listen_wildcard(0, wanted)?;
                ensure!(transparent == got, "{wanted:?}");
            }
        }
        sockets.udp((Ipv4Addr::UNSPECIFIED, 0).into())?;
        Ok(())
    })
}

fn rules_and_routes_are_added_and_deleted_idempotently() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    for v6 in [false, true] {
        let before = (route::fwmark_rules(&netns, v6)?, route::local_routes(&netns, v6, 100)?);
        ensure!(before == (vec![], vec![]), "{before:?}");
        for _ in 0..2 {
            route::add_fwmark_rule(&netns, v6, 0x111, 0xfff, 100, 32764)?;
            route::add_local_default(&netns, v6, 100)?;
        }
        ensure!(route::fwmark_rules(&netns, v6)? == [(0x111, 0xfff, 100, 32764)]);
        let any = if v6 { "::/0" } else { "0.0.0.0/0" }.parse::<IpNet>()?;
        ensure!(route::local_routes(&netns, v6, 100)? == [any]);
        for _ in 0..2 {
            route::del_fwmark_rule(&netns, v6, 0x111, 0xfff, 100, 32764)?;
            route::del_local_default(&netns, v6, 100)?;
        }
        let after = (route::fwmark_rules(&netns, v6)?, route::local_routes(&netns, v6, 100)?);
        ensure!(after == (vec![], vec![]), "{after:?}");
    }
    Ok(())
}

fn sysctls_are_per_namespace() -> anyhow::Result<()> {
    let (one, two) = (Netns::create()?, Netns::create()?);
    let key = "net/ipv4/ip_forward";
    sysctl::write(&one, key, "1")?;
    sysctl::write(&two, key, "0")?;
    ensure!(sysctl::read(&one, key)? == "1" && sysctl::read(&two, key)? == "0");
    Ok(())
}

fn deleting_a_link_is_idempotent() -> anyhow::Result<()> {
    let (one, two) = (Netns::create()?, Netns::create()?);
    route::add_veth(&one, "left", &two, "right")?;
    route::set_up(&two, "right")?;
    let taken = text(route::add_veth(&one, "left", &two, "other"));
    ensure!(taken.starts_with("add link left in net:["), "{taken}");
    route::del_link(&one, "left")?;
    route::del_link(&one, "left")?;
    let gone = text(route::set_up(&two, "right"));
    ensure!(gone.starts_with("find interface right: "), "{gone}");
    Ok(())
}

/// Both directions, with more data than a socket buffer holds, and no frame of another interface.
fn a_capture_has_every_frame_of_one_interface() -> anyhow::Result<()> {
    lab::block_on(async {
        let tasks = Tasks::new("test");
        let lan = lab::Lan::new()?;
        let (a, b) = (lan.host()?, lan.host()?);
        let (on_a, on_lo) = (Capture::open(&a.netns, "eth0")?, Capture::open(&b.netns, "lo")?);
        let addr = lab::echo(&b.sockets(), (b.v4, 8080).into(), &tasks)?;
        let payload = vec![0xa5; 4 * 1024 * 1024];
        let answer = lab::exchange(a.sockets().connect(addr, None, SOON).await?, &payload).await?;
        ensure!(answer == payload);
        let seen = on_a.drain().concat().into_iter().filter(|byte| *byte == 0xa5).count();
        ensure!(seen >= 2 * payload.len(), "{seen} bytes of {}", 2 * payload.len());
        ensure!(on_lo.drain().is_empty());
        lab::exchange(a.sockets().connect(addr, None, SOON).await?, b"now").await?;
        ensure!(on_a.drain().iter().any(|frame| frame.ends_with(b"now")));
        Ok(())
    })
}

fn text(outcome: Result<(), isthmus_sys::Error>) -> String {
    outcome.map_or_else(|error| error.to_string(), |()| "no error".to_owned())
}

/// Redirects datagrams to port 53 of other hosts to a port of this one.
fn redirect_dns(netns: &Netns, port: u16) -> anyhow::Result<()> {
    let query = nft::Statement::Port(nft::Proto::Udp, nft::Side::Destination, nft::Op::Eq, 53);
    let base = nft::Base {
        kind: nft::ChainKind::Nat,
        hook: nft::Hook::Output,
        priority: -100,
        policy: nft::Policy::Accept,
    };
    let chain = nft::Chain {
        name: "output".to_owned(),
        base: Some(base),
        rules: vec![nft::Rule::new([query, nft::Statement::Redirect(port)])],
    };
    let table =
        nft::Table { family: nft::Family::Inet, name: "test".to_owned(), sets: vec![], chains: vec![chain] };
    Ok(nft::apply(netns, &nft::Ruleset { tables: vec![table] })?)
}

fn conntrack_returns_the_original_destination_of_a_datagram() -> anyhow::Result<()> {
    lab::block_on(async {
        let lan = lab::Lan::new()?;
        let host = lan.host()?;
        redirect_dns(&host.netns, 5353)?;
        let conntrack = host.sockets().conntrack()?;
        let servers: [[std::net::SocketAddr; 2]; 2] = [
            ["198.51.100.1:53".parse()?, "198.51.100.2:53".parse()?],
            ["[2001:db8::1]:53".parse()?, "[2001:db8::2]:53".parse()?],
        ];
        for (servers, loopback) in servers.into_iter().zip(["127.0.0.1:5353", "[::1]:5353"]) {
            let (at, mut buffer) = (loopback.parse()?, [0; 64]);
            let proxy = host.sockets().udp(at)?;
            let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            // One socket that queries several servers at once, as some resolvers do.
            let client = host.sockets().udp(any.parse()?)?;
            for server in servers {
                client.send_to(server.to_string().as_bytes(), server).await?;
            }
            for _ in servers {
                let (length, from) = tokio::time::timeout(SOON, proxy.recv_from(&mut buffer)).await??;
                let said: std::net::SocketAddr = std::str::from_utf8(&buffer[..length])?.parse()?;
                let found = conntrack.original_udp(from, at)?;
                ensure!(found == Some(said), "sent to {said}, found {found:?}");
                // The answer has the source address of the queried server.
                proxy.send_to(b"answer", from).await?;
                let (_, answered) = tokio::time::timeout(SOON, client.recv_from(&mut buffer)).await??;
                ensure!(answered == said, "{answered} answered for {said}");
                ensure!(
                    conntrack.original_udp(from, at)? == Some(said),
                    "the entry lasts as long as it is used"
                );
            }
            // A datagram that was not redirected has no other destination.
            client.send_to(b"direct", at).await?;
            let (_, from) = tokio::time::timeout(SOON, proxy.recv_from(&mut buffer)).await??;
            ensure!(conntrack.original_udp(from, at)?.is_none_or(|to| to == at));
            // A datagram that was never sent has no entry.
            let stranger = std::net::SocketAddr::new(from.ip(), 9);
            ensure!(conntrack.original_udp(stranger, at)?.is_none());
        }
        Ok(())
    })
}
