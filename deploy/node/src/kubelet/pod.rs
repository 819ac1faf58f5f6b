//! The life of one pod on its node, from its sandbox to its end. One task owns all of it.
//!
//! ```text
//!  sandbox (again until the CNI chain says yes) → volumes → containers run, are probed, start again
//!        │ deleted                                   │ deleted            │ deleted: TERM, grace, KILL
//!        └───────────────────────────► CNI DEL ◄─────┴────────────────────┘ → object removed
//! ```

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use isthmus_rt::backoff::Backoff;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodIP, PodStatus};
use serde_json::json;
use tokio::sync::watch;

use super::container::{self, DesiredState, PodEnvironment, RuntimeStatus};
use super::sandbox::Sandbox;
use super::spec::PodExt;
use super::volumes::{self, Tokens};
use super::{Node, Record};

/// Between attempts to make a sandbox.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

type Updates = watch::Receiver<Option<Pod>>;

/// Lives the pod's life; ends when it is gone. `updates` tells the object as it changes, and nothing when it was
/// removed without us.
pub(super) async fn run(node: Arc<Node>, pod: Pod, mut updates: Updates) {
    let mut worker = Worker { node, pod, sandbox: None, reported: None };
    worker.live(&mut updates).await;
    if let Some(sandbox) = worker.sandbox.take() {
        sandbox.end(&worker.node).await;
    }
    worker.record("", &[]).remove(&worker.node.folders.pods);
    // The folder holds tokens.
    let _ = fs::remove_dir_all(worker.root());
    if updates.borrow().is_some() {
        let removed = worker.node.client.delete_now(&worker.pod.path()).await;
        if let Err(error) = removed {
            tracing::error!(pod = worker.pod.name(), %error, "cannot remove the pod's object from the API server");
        }
    }
}

struct Worker {
    node: Arc<Node>,
    pod: Pod,
    sandbox: Option<Sandbox>,
    /// The status that was last written.
    reported: Option<PodStatus>,
}

impl Worker {
    async fn live(&mut self, updates: &mut Updates) {
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        let mut attempt = 0;
        let (environment, tokens) = loop {
            if ending(updates) {
                return;
            }
            attempt += 1;
            match self.prepare(attempt).await {
                Ok(ready) => break ready,
                Err(error) => self.not_prepared(&error).await,
            }
            tokio::select! {
                () = tokio::time::sleep(pause.next_delay()) => {}
                _ = end(updates) => return,
            }
        };
        self.contain(&environment, tokens, updates).await;
    }

    /// Sandbox and volumes; what is there already from an earlier attempt stays.
    async fn prepare(&mut self, attempt: u32) -> anyhow::Result<(PodEnvironment, Tokens)> {
        let root = self.root();
        let etc = root.join("etc");
        fs::create_dir_all(&etc).with_context(|| format!("cannot make {}", etc.display()))?;
        let options = &self.node.options;
        let namespace = self.pod.namespace();
        let search = format!("{namespace}.svc.cluster.local svc.cluster.local cluster.local");
        let resolv = format!("search {search}\nnameserver {}\noptions ndots:5\n", options.dns);
        fs::write(etc.join("resolv.conf"), resolv)?;
        fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n")?;
        if self.sandbox.is_none() && !self.pod.is_host_network() {
            self.sandbox = Some(Sandbox::create(&self.node, &self.pod, attempt).await?);
        }
        let tokens = volumes::write(&self.node, &self.pod, &root).await?;
        let netns = self.sandbox.as_ref().map(|sandbox| sandbox.netns.clone());
        Ok((PodEnvironment { pod: self.pod.clone(), netns, ip: self.ip(), root, etc }, tokens))
    }

    async fn not_prepared(&mut self, error: &anyhow::Error) {
        let message = format!("{error:#}");
        tracing::warn!(pod = self.pod.name(), error = message, "pod cannot start yet, trying again");
        let waiting = RuntimeStatus { message, ..RuntimeStatus::default() };
        let states = vec![waiting; self.pod.containers().len()];
        self.report(&states).await;
    }

    /// Runs the containers until the pod is to end or all of them are done.
    async fn contain(&mut self, environment: &PodEnvironment, mut tokens: Tokens, updates: &mut Updates) {
        let node = Arc::clone(&self.node);
        let containers = environment.pod.containers();
        let (states, mut changed) = watch::channel(vec![RuntimeStatus::default(); containers.len()]);
        let (desire, desired) = watch::channel(DesiredState::Running);
        let running = join_all(containers.iter().enumerate().map(|(at, container)| {
            let states = &states;
            let update =
                move |change: &dyn Fn(&mut RuntimeStatus)| states.send_modify(|all| change(&mut all[at]));
            container::run(&node, environment, container, desired.clone(), update)
        }));
        tokio::pin!(running);
        let mut done = false;
        loop {
            let now = changed.borrow_and_update().clone();
            self.report(&now).await;
            tokio::select! {
                // What ended is reported before the object is removed.
                biased;
                _ = changed.changed() => {}
                _ = &mut running, if !done => {
                    if *desire.borrow() != DesiredState::Running {
                        return;
                    }
                    done = true;
                }
                grace = end(updates), if *desire.borrow() == DesiredState::Running => {
                    if done {
                        return;
                    }
                    desire.send_replace(DesiredState::Stopped(grace));
                }
                () = due(&tokens) => tokens.renew(&node, &environment.pod).await,
            }
        }
    }

    /// Writes the status to the API server and to the record, when it changed.
    async fn report(&mut self, states: &[RuntimeStatus]) {
        let phase = phase(states);
        self.record(phase, states).write(&self.node.folders.pods);
        let status = self.status(phase, states);
        if self.reported.as_ref() == Some(&status) {
            return;
        }
        let path = format!("{}/status", self.pod.path());
        match self.node.client.merge_patch(&path, &json!({"status": status})).await {
            Ok(_) => self.reported = Some(status),
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!(pod = self.pod.name(), %error, "cannot write the pod's status")
            }
        }
    }

    fn status(&self, phase: &str, states: &[RuntimeStatus]) -> PodStatus {
        let ready = states.iter().all(|state| state.ready);
        let condition = |kind: &str, holds: bool| PodCondition {
            type_: kind.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            ..PodCondition::default()
        };
        let containers = self.pod.containers().iter().zip(states);
        let ip = (self.sandbox.is_some() || self.pod.is_host_network()).then(|| self.ip().to_string());
        PodStatus {
            phase: Some(phase.to_owned()),
            host_ip: Some(self.node.options.address.to_string()),
            conditions: Some(vec![
                condition("PodScheduled", true),
                condition("Initialized", true),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ]),
            container_statuses: Some(containers.map(|(container, state)| state.report(container)).collect()),
            pod_ips: ip.clone().map(|ip| vec![PodIP { ip }]),
            pod_ip: ip,
            ..PodStatus::default()
        }
    }

    fn record(&self, phase: &str, states: &[RuntimeStatus]) -> Record {
        let message = states.iter().map(|state| state.message.as_str()).find(|message| !message.is_empty());
        Record {
            cluster: self.node.options.cluster.clone(),
            namespace: self.pod.namespace().to_owned(),
            name: self.pod.name().to_owned(),
            uid: self.pod.uid().to_owned(),
            node: self.node.options.node.clone(),
            ip: self.sandbox.as_ref().map(|sandbox| sandbox.ip.to_string()).unwrap_or_default(),
            pid: states.iter().find_map(|state| state.pid),
            phase: phase.to_owned(),
            ready: !states.is_empty() && states.iter().all(|state| state.ready),
            message: message.unwrap_or_default().to_owned(),
        }
    }

    fn ip(&self) -> Ipv4Addr {
        self.sandbox.as_ref().map_or(self.node.options.address, |sandbox| sandbox.ip)
    }

    fn root(&self) -> std::path::PathBuf {
        self.node.folders.pods.join(self.pod.uid())
    }
}

fn phase(states: &[RuntimeStatus]) -> &'static str {
    let done = |good: &dyn Fn(i32) -> bool| states.iter().all(|state| state.done.is_some_and(good));
    match () {
        () if !states.is_empty() && done(&|code| code == 0) => "Succeeded",
        () if !states.is_empty() && done(&|_| true) => "Failed",
        () if states.iter().any(|state| state.pid.is_some() || state.restarts > 0) => "Running",
        () => "Pending",
    }
}

fn over(pod: &Option<Pod>) -> bool {
    pod.as_ref().is_none_or(Pod::is_terminating)
}

fn ending(updates: &Updates) -> bool {
    over(&updates.borrow())
}

/// Waits until the pod is to end; how long its programs may take.
async fn end(updates: &mut Updates) -> Duration {
    match updates.wait_for(over).await.as_deref() {
        Ok(Some(pod)) => pod.grace_period(),
        _ => Duration::ZERO,
    }
}

async fn due(tokens: &Tokens) {
    match tokens.next() {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_is_that_of_the_containers() {
        let state = |pid, done| RuntimeStatus { pid, done, ..RuntimeStatus::default() };
        assert_eq!(phase(&[state(None, None)]), "Pending");
        assert_eq!(phase(&[state(Some(1), None), state(None, None)]), "Running");
        assert_eq!(phase(&[state(None, Some(0)), state(None, Some(0))]), "Succeeded");
        assert_eq!(phase(&[state(None, Some(0)), state(None, Some(3))]), "Failed");
        assert_eq!(phase(&[RuntimeStatus { restarts: 2, ..RuntimeStatus::default() }]), "Running");
    }
}
