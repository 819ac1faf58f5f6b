//! Canaries: answered by the agent's listener, never accepted by it, never seen outside of the pod.

use isthmus_node::rules::{CANARY_V4, CANARY_V6};

use super::*;

fn canaries() -> [SocketAddr; 2] {
    [(CANARY_V4, 40_000).into(), (CANARY_V6, 40_000).into()]
}

pub(crate) fn a_canary_is_answered_and_never_accepted() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules { canary: true, ..PodRules::default() })?;
        let outbound = listener(&lab.agent(), 15001)?;
        for to in canaries() {
            let answered = lab.app().connect(to, None, SOON).await.context("no listener answers")?;
            let accepted = tokio::time::timeout(NEVER, outbound.accept()).await;
            ensure!(accepted.is_err(), "the agent accepted the canary to {to}");
            drop(answered);
        }
        for to in lab.peer_at(8080) {
            arrives(&lab.app(), to, &outbound).await?;
        }
        Ok(())
    })
}

pub(crate) fn a_canary_that_is_not_redirected_stays_in_the_pod() -> anyhow::Result<()> {
    lab::block_on(async {
        let lab = PacketLab::captured(&PodRules { canary: true, ..PodRules::default() })?;
        let wire = Capture::open(&lab.pod.netns, "eth0")?;
        let syns = || wire.drain().iter().filter(|frame| is_syn(frame)).count();
        nft::remove(&lab.pod.netns, &[(Family::Inet, "istio-ambient-nat".to_owned())])?;
        for to in canaries() {
            ensure!(lab.app().connect(to, None, NEVER).await.is_err());
        }
        ensure!(syns() == 0, "a canary left the pod");
        // Once the pod is open, nothing but canaries is dropped.
        let tasks = Tasks::new("test");
        for to in lab.peer_at(8080) {
            lab::echo(&lab.peer.sockets(), to, &tasks)?;
            lab::exchange(lab.app().connect(to, None, SOON).await?, b"ping").await?;
        }
        ensure!(syns() > 0, "the control sees connections");
        nft::remove(&lab.pod.netns, &[(Family::Inet, "isthmus-guard".to_owned())])?;
        for to in canaries() {
            ensure!(lab.app().connect(to, None, NEVER).await.is_err());
            ensure!(syns() > 0, "without the guard {to} is sent to the network");
        }
        Ok(())
    })
}

/// Its answers leave the pod without the agent's mark, as plaintext of a pod that is not captured would.
pub(crate) fn an_ingress_answers_its_clients_while_it_is_closed() -> anyhow::Result<()> {
    lab::block_on(async {
        let rules = PodRules { ingress_mode: true, closing: true, canary: true, ..PodRules::default() };
        let lab = PacketLab::captured(&rules)?;
        let app = listener(&lab.app(), 8080)?;
        for to in lab.pod_at(8080) {
            arrives(&lab.peer.sockets(), to, &app).await?;
        }
        Ok(())
    })
}
