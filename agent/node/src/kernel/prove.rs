//! Asking the kernel whether a pod's traffic is captured.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use isthmus_model::{AgentPorts, HBONE_PORT, PodUid};
use isthmus_sys::bypass;
use isthmus_sys::canary::{self, Landing};
use isthmus_sys::netns::Netns;

use crate::capture::{CaptureError, Direction, Sandbox, Stray};
use crate::kernel::KernelError;
use crate::netns_lookup;
use crate::rules::{AGENT_MARK, CANARY_V4, CANARY_V6, MARK_MASK};

/// The ports of canaries: the nonce. Below them are ports of applications, above those of the agent's own connections.
const NONCES: std::ops::Range<u16> = 20_000..60_000;

/// Shows that a pod's traffic is captured: no packet passes the rules by, and canaries come out at the agent.
pub(super) fn prove(sandbox: &Sandbox, host: &Netns) -> Result<(), CaptureError> {
    let failed = || KernelError::failed("capture");
    // A sandbox without interfaces is being removed, and nothing can leave it.
    let connected = !bypass::interfaces(&sandbox.netns).map_err(failed())?.is_empty();
    if connected && !netns_lookup::owns_one_of(&sandbox.netns, &sandbox.ips) {
        return Err(CaptureError::OwnStack);
    }
    let bypasses = bypass::find(&sandbox.netns, host).map_err(failed())?;
    if let Some(found) = bypasses.into_iter().next() {
        return Err(CaptureError::Bypass(found));
    }
    let ports = AgentPorts::WELL_KNOWN;
    for v6 in if sandbox.capture.ipv6 { &[false, true][..] } else { &[false] } {
        let canary: IpAddr = if *v6 { CANARY_V6.into() } else { CANARY_V4.into() };
        let to = SocketAddr::new(canary, nonce());
        let landing = canary::outbound(&sandbox.netns, to, ports.outbound).map_err(failed())?;
        judge(landing, Direction::Outbound)?;
        if !sandbox.capture.inbound {
            continue;
        }
        for ip in sandbox.ips.iter().filter(|ip| ip.is_ipv6() == *v6) {
            let (from, to) = (SocketAddr::new(canary, nonce()), SocketAddr::new(*ip, nonce()));
            let landing =
                canary::inbound(&sandbox.netns, host, from, to, ports.inbound_plaintext).map_err(failed())?;
            judge(landing, Direction::Inbound)?;
        }
    }
    Ok(())
}

fn nonce() -> u16 {
    loop {
        let port = NONCES.start + fastrand::u16(..NONCES.end - NONCES.start);
        if port != HBONE_PORT {
            return port;
        }
    }
}

fn judge(landing: Landing, direction: Direction) -> Result<(), CaptureError> {
    match landing {
        Landing::NoRoad => Ok(()),
        Landing::At(socket) if socket.mark.is_none_or(|mark| mark & MARK_MASK == AGENT_MARK) => Ok(()),
        Landing::At(_) => Err(CaptureError::NotTheAgents(direction)),
        Landing::Refused => Err(CaptureError::NotServed),
        Landing::Elsewhere => Err(CaptureError::NotRedirected(direction)),
    }
}

/// Processes of pods that are in another namespace than their pod's, if that has a road of its own.
pub(super) fn strays(
    proc_dir: &Path,
    host: &Netns,
    pods: &[(PodUid, Netns)],
) -> Result<Vec<Stray>, KernelError> {
    let by_uid: HashMap<&str, &(PodUid, Netns)> = pods.iter().map(|pod| (pod.0.as_str(), pod)).collect();
    let processes = netns_lookup::processes(proc_dir).map_err(KernelError::failed("processes of pods"))?;
    let stray = |process: netns_lookup::PodProcess| {
        let (uid, home) = by_uid.get(process.pod()?)?;
        if process.netns == home.id() {
            return None;
        }
        let name = || process.folder.display().to_string();
        if process.netns == host.id() {
            return Some(Stray { pod: uid.clone(), process: name(), netns: None });
        }
        // One that ends meanwhile has no road.
        let netns = Netns::open(&process.folder.join("ns/net")).ok()?;
        let past = bypass::leads_past(&netns, home).unwrap_or(false);
        past.then(|| Stray { pod: uid.clone(), process: name(), netns: Some(netns) })
    };
    Ok(processes.into_iter().filter_map(stray).collect())
}
