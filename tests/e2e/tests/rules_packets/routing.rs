//! Preserved client addresses, and the removal of rules and routes.

use super::*;

/// The agent connects to the application from the client's address. The answers, addressed to that client, must reach
/// the agent and not leave the pod.
pub(crate) fn answers_to_a_preserved_client_address_return_to_the_agent() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let tasks = Tasks::new("test");
        let app = lab::echo(&lab.app(), (Ipv6Addr::UNSPECIFIED, 8080).into(), &tasks)?;
        let clients = [IpAddr::from(lab.peer.v4), lab.peer.v6.into()];
        for (to, client) in lab.pod_at(app.port()).into_iter().zip(clients) {
            let stream = lab.agent().connect(to, Some(client), SOON).await?;
            ensure!(canonical(stream.local_addr()?).ip() == client);
            ensure!(lab::exchange(stream, b"ping").await? == b"ping");
        }
        // Each part is needed: without the mark it is the application's own traffic, without the route answers leave the pod.
        for (to, client) in lab.pod_at(app.port()).into_iter().zip(clients) {
            ensure!(lab.app().connect(to, Some(client), NEVER).await.is_err(), "no mark was needed");
            route::del_local_default(&lab.pod.netns, to.is_ipv6(), rules::LOCAL_TABLE)?;
            ensure!(lab.agent().connect(to, Some(client), NEVER).await.is_err(), "no route was needed");
        }
        Ok(())
    })
}

/// Everything that redirection leaves in a namespace.
#[derive(Debug, PartialEq, Eq)]
struct Traces {
    ruleset: Ruleset,
    rules: [Vec<(u32, u32, u32, u32)>; 2],
    routes: [usize; 2],
}

fn traces(netns: &Netns) -> anyhow::Result<Traces> {
    Ok(Traces {
        ruleset: nft::dump(netns)?,
        rules: [route::fwmark_rules(netns, false)?, route::fwmark_rules(netns, true)?],
        routes: [
            route::local_routes(netns, false, rules::LOCAL_TABLE)?.len(),
            route::local_routes(netns, true, rules::LOCAL_TABLE)?.len(),
        ],
    })
}

fn all_kinds() -> [PodRules; 4] {
    let closing = PodRules { closing: true, ..PodRules::default() };
    let interfaces = PodRules { virtual_interfaces: vec!["vm0".to_owned()], ..closing.clone() };
    let ingress = PodRules { ingress_mode: true, dns_capture: false, ..closing.clone() };
    [PodRules::default(), closing, interfaces, ingress]
}

pub(crate) fn applying_twice_changes_nothing() -> anyhow::Result<()> {
    for pod in all_kinds() {
        let netns = Netns::create()?;
        rules::apply_pod(&netns, &pod)?;
        let once = traces(&netns)?;
        ensure!(once.ruleset == rules::pod_ruleset(&pod).canonical(), "{}", once.ruleset);
        ensure!(once.rules.iter().all(|found| *found == [(0x111, 0xfff, 100, 32764)]), "{once:?}");
        ensure!(once.routes == [1, 1], "{once:?}");
        rules::apply_pod(&netns, &pod)?;
        ensure!(traces(&netns)? == once);
    }
    Ok(())
}

pub(crate) fn removing_the_rules_restores_the_namespace() -> anyhow::Result<()> {
    for pod in all_kinds() {
        let netns = Netns::create()?;
        let before = traces(&netns)?;
        rules::remove_pod(&netns)?;
        ensure!(traces(&netns)? == before);
        rules::apply_pod(&netns, &pod)?;
        ensure!(traces(&netns)? != before);
        for _ in 0..2 {
            rules::remove_pod(&netns)?;
            ensure!(traces(&netns)? == before);
        }
    }
    Ok(())
}

/// What only an earlier configuration programmed is removed.
pub(crate) fn a_smaller_rule_set_replaces_a_larger_one() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    let few = PodRules { dns_capture: false, ipv6: false, ..PodRules::default() };
    rules::apply_pod(&netns, &few)?;
    let expected = traces(&netns)?;
    ensure!(expected.routes == [1, 0] && expected.rules[1].is_empty(), "{expected:?}");
    rules::apply_pod(&netns, &PodRules { closing: true, ..PodRules::default() })?;
    ensure!(traces(&netns)? != expected);
    rules::apply_pod(&netns, &few)?;
    ensure!(traces(&netns)? == expected);
    Ok(())
}

pub(crate) fn a_pod_without_ipv6_is_redirected_over_ipv4() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::new()?;
        for interface in ["all", "default", "lo", "eth0"] {
            sysctl::write(&lab.pod.netns, &format!("net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
        }
        rules::apply_pod(&lab.pod.netns, &PodRules::default())?;
        ensure!(traces(&lab.pod.netns)?.routes == [1, 0]);
        let outbound = listener(&lab.agent(), 15001)?;
        let [to, _] = lab.peer_at(8080);
        arrives(&lab.app(), to, &outbound).await?;
        rules::remove_pod(&lab.pod.netns)?;
        ensure!(traces(&lab.pod.netns)?.ruleset == Ruleset::default());
        Ok(())
    })
}
