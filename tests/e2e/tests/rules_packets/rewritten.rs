//! Probes: from the kubelet's process on the node, with their source rewritten, to the application and back.

use super::*;

/// The user that the kubelet of these tests runs as: root of the lab's user namespace.
const KUBELET: HostRules =
    HostRules { kubelet_uid: 0, ipv6: true, probe_v4: PROBE_V4, probe_v6: PROBE_V6, members: Vec::new() };

fn probe_sources() -> [IpAddr; 2] {
    [PROBE_V4.into(), PROBE_V6.into()]
}

pub(crate) fn probes_of_the_kubelet_reach_the_application() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        rules::apply_host(&lab.lan.node, &KUBELET)?;
        let app = listener(&lab.app(), 8080)?;
        for (to, source) in lab.pod_at(8080).into_iter().zip(probe_sources()) {
            rules::add_host_probe(&lab.lan.node, to.ip(), "pod-uid")?;
            let caller = arrives(&lab.lan.sockets(), to, &app).await?;
            ensure!(caller.ip() == source, "{caller}");
        }
        Ok(())
    })
}

pub(crate) fn other_traffic_from_the_node_is_redirected() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let plaintext = listener(&lab.agent(), 15006)?;
        let (node, pod) = (&lab.lan.node, lab.pod_at(8080));
        // An address outside the set of enrolled pods.
        rules::apply_host(node, &KUBELET)?;
        for (to, real) in pod.into_iter().zip([IpAddr::from(lab.lan.v4), lab.lan.v6.into()]) {
            ensure!(arrives(&lab.lan.sockets(), to, &plaintext).await?.ip() == real);
            rules::add_host_probe(node, to.ip(), "pod-uid")?;
        }
        // A pod of the mesh, but not from the kubelet: another pod, another user, an address that was removed again.
        for to in pod {
            ensure!(!probe_sources().contains(&arrives(&lab.peer.sockets(), to, &plaintext).await?.ip()));
        }
        rules::apply_host(node, &HostRules { kubelet_uid: 4242, ..KUBELET })?;
        ensure!(rules::host_probes(node)?.len() == 2);
        for to in pod {
            ensure!(!probe_sources().contains(&arrives(&lab.lan.sockets(), to, &plaintext).await?.ip()));
        }
        rules::apply_host(node, &KUBELET)?;
        for to in pod {
            rules::remove_host_probe(node, to.ip())?;
            ensure!(!probe_sources().contains(&arrives(&lab.lan.sockets(), to, &plaintext).await?.ip()));
        }
        Ok(())
    })
}

/// The pod's half alone: the probe address is admitted and answered, without an agent.
pub(crate) fn probes_work_without_an_agent_in_either_direction() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules::default())?;
        let (app, kubelet) = (listener(&lab.app(), 8080)?, lab.lan.sockets());
        for source in probe_sources() {
            route::add_address(&lab.lan.node, "br0", source.into())?;
            // The pod may also call it: an answer is all the same a packet to that address.
            let service = listener(&kubelet, 9090)?;
            arrives(&lab.app(), (source, 9090).into(), &service).await?;
        }
        for (to, source) in lab.pod_at(8080).into_iter().zip(probe_sources()) {
            let accept =
                async { Ok(tokio::time::timeout(SOON, app.accept()).await.context("no probe arrives")??) };
            let connect = async { Ok::<_, anyhow::Error>(kubelet.connect(to, Some(source), SOON).await?) };
            let (dialled, (accepted, caller)) = tokio::try_join!(connect, accept)?;
            ensure!(canonical(caller).ip() == source);
            talk(dialled, accepted).await?;
        }
        Ok(())
    })
}
