//! The host's own rules: the source address of probes is the host's alone, and the probe sets are kept.

use isthmus_sys::nft::Element;

use super::*;

/// Whether a datagram from `source`, which `from` has, arrives at `at`.
async fn is_let_in(from: &Host, source: IpAddr, at: &UdpSocket, within: Duration) -> anyhow::Result<bool> {
    let sender = from.sockets().udp((source, 0).into())?;
    sender.send_to(b"?", at.local_addr()?).await?;
    let mut buffer = [0; 4];
    let Ok(received) = tokio::time::timeout(within, at.recv_from(&mut buffer)).await else {
        return Ok(false);
    };
    let (_, seen) = received?;
    ensure!(canonical(seen).ip() == source, "{seen} instead of {source}");
    Ok(true)
}

/// A lab whose peer has the source addresses of probes, and whose node lets such packets in as far as routing goes.
fn posing() -> anyhow::Result<PacketLab> {
    let lab = PacketLab::new()?;
    for source in [IpAddr::from(PROBE_V4), PROBE_V6.into()] {
        route::add_address(&lab.peer.netns, "eth0", source.into())?;
    }
    for netns in [&lab.lan.node, &lab.pod.netns] {
        sysctl::write(netns, "net/ipv4/conf/all/rp_filter", "0")?;
    }
    Ok(lab)
}

pub(crate) fn packets_from_the_probes_address_do_not_enter_the_host() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = posing()?;
        let at = [(lab.lan.v4, 5000).into(), (lab.lan.v6, 5000).into()];
        let sources = [(PROBE_V4.into(), lab.peer.v4.into()), (PROBE_V6.into(), lab.peer.v6.into())];
        for (at, (probe, own)) in at.into_iter().zip(sources) {
            let at = lab.lan.sockets().udp(at)?;
            ensure!(is_let_in(&lab.peer, probe, &at, SOON).await?, "the control: {probe}");
            rules::apply_host_guard(&lab.lan.node, &HostRules::default())?;
            ensure!(!is_let_in(&lab.peer, probe, &at, NEVER).await?, "{probe} is the host's");
            ensure!(is_let_in(&lab.peer, own, &at, SOON).await?, "{own} is the peer's");
            rules::remove_host(&lab.lan.node)?;
            ensure!(is_let_in(&lab.peer, probe, &at, SOON).await?, "the guard is gone");
        }
        Ok(())
    })
}

pub(crate) fn frames_from_the_probes_address_do_not_cross_a_bridge() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = posing()?;
        let sources = [(PROBE_V4.into(), lab.peer.v4.into()), (PROBE_V6.into(), lab.peer.v6.into())];
        let mut receivers = Vec::new();
        for (at, (probe, own)) in lab.pod_at(5000).into_iter().zip(sources) {
            let at = lab.pod.sockets().udp(at)?;
            ensure!(is_let_in(&lab.peer, probe, &at, SOON).await?, "the control: {probe}");
            receivers.push((at, probe, own));
        }
        rules::apply_bridge_guard(&lab.lan.node, &HostRules::default())?;
        for (at, probe, own) in receivers {
            ensure!(!is_let_in(&lab.peer, probe, &at, NEVER).await?, "{probe} is the host's");
            ensure!(is_let_in(&lab.peer, own, &at, SOON).await?, "{own} is the peer's");
        }
        Ok(())
    })
}

pub(crate) fn known_members_stay_beside_new_ones() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    rules::apply_host(&netns, &HostRules::default())?;
    rules::add_host_probe(&netns, "10.0.0.7".parse()?, "a")?;
    rules::add_host_probe(&netns, "10.0.0.8".parse()?, "b")?;
    let member = |address: &str, pod: &str| -> anyhow::Result<Element> {
        Ok(Element { address: address.parse()?, comment: Some(pod.to_owned()) })
    };
    let members = vec![member("10.0.0.8", "c")?, member("fd00::9", "d")?];
    rules::apply_host(&netns, &HostRules { members, ..HostRules::default() })?;
    let mut found = rules::host_probes(&netns)?;
    found.sort_by_key(|member| member.address);
    let want = [member("10.0.0.7", "a")?, member("10.0.0.8", "c")?, member("fd00::9", "d")?];
    ensure!(found == want, "{found:?}");
    Ok(())
}
