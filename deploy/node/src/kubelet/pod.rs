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
use serde_json::{Value, json};
use tokio::sync::watch;

use super::container::{self, Place, State, Wanted};
use super::sandbox::Sandbox;
use super::spec::Pod;
use super::volumes::{self, Tokens};
use super::{Node, Record};

/// Between attempts to make a sandbox.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

type Updates = watch::Receiver<Option<Pod>>;

/// Lives the pod's life; ends when it is gone. `updates` tells the object as it changes, and nothing when it was
/// removed without us.
pub(super) async fn run(node: Arc<Node>, pod: Pod, mut updates: Updates) {
    let mut worker = Worker { node, pod, sandbox: None, said: Value::Null };
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
            tracing::error!(pod = worker.pod.metadata.name, %error, "cannot remove the pod's object");
        }
    }
}

struct Worker {
    node: Arc<Node>,
    pod: Pod,
    sandbox: Option<Sandbox>,
    /// The status that was last written.
    said: Value,
}

impl Worker {
    async fn live(&mut self, updates: &mut Updates) {
        let mut pause = Backoff::new(PAUSE.0, PAUSE.1);
        let mut attempt = 0;
        let (place, tokens) = loop {
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
        self.contain(&place, tokens, updates).await;
    }

    /// Sandbox and volumes; what is there already from an earlier attempt stays.
    async fn prepare(&mut self, attempt: u32) -> anyhow::Result<(Place, Tokens)> {
        let root = self.root();
        let etc = root.join("etc");
        fs::create_dir_all(&etc).with_context(|| format!("cannot make {}", etc.display()))?;
        let options = &self.node.options;
        let namespace = &self.pod.metadata.namespace;
        let search = format!("{namespace}.svc.cluster.local svc.cluster.local cluster.local");
        let resolv = format!("search {search}\nnameserver {}\noptions ndots:5\n", options.dns);
        fs::write(etc.join("resolv.conf"), resolv)?;
        fs::write(etc.join("nsswitch.conf"), "hosts: files dns\n")?;
        if self.sandbox.is_none() && !self.pod.spec.host_network {
            self.sandbox = Some(Sandbox::create(&self.node, &self.pod, attempt).await?);
        }
        let tokens = volumes::write(&self.node, &self.pod, &root).await?;
        let netns = self.sandbox.as_ref().map(|sandbox| sandbox.netns.clone());
        Ok((Place { pod: self.pod.clone(), netns, ip: self.ip(), root, etc }, tokens))
    }

    async fn not_prepared(&mut self, error: &anyhow::Error) {
        let message = format!("{error:#}");
        tracing::warn!(pod = self.pod.metadata.name, error = message, "pod cannot start yet");
        let waiting = State { message, ..State::default() };
        let states = vec![waiting; self.pod.spec.containers.len()];
        self.report(&states).await;
    }

    /// Runs the containers until the pod is to end or all of them are done.
    async fn contain(&mut self, place: &Place, mut tokens: Tokens, updates: &mut Updates) {
        let node = Arc::clone(&self.node);
        let containers = &place.pod.spec.containers;
        let (states, mut changed) = watch::channel(vec![State::default(); containers.len()]);
        let (wish, wanted) = watch::channel(Wanted::Running);
        let running = join_all(containers.iter().enumerate().map(|(at, container)| {
            let states = &states;
            let tell = move |change: &dyn Fn(&mut State)| states.send_modify(|all| change(&mut all[at]));
            container::run(&node, place, container, wanted.clone(), tell)
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
                    if *wish.borrow() != Wanted::Running {
                        return;
                    }
                    done = true;
                }
                grace = end(updates), if *wish.borrow() == Wanted::Running => {
                    if done {
                        return;
                    }
                    wish.send_replace(Wanted::Ended(grace));
                }
                () = due(&tokens) => tokens.renew(&node, &place.pod).await,
            }
        }
    }

    /// Writes the status to the API server and to the record, when it changed.
    async fn report(&mut self, states: &[State]) {
        let phase = phase(states);
        self.record(phase, states).write(&self.node.folders.pods);
        let status = self.status(phase, states);
        if status == self.said {
            return;
        }
        let path = format!("{}/status", self.pod.path());
        match self.node.client.merge_patch(&path, &json!({"status": status})).await {
            Ok(_) => self.said = status,
            Err(error) if error.is_not_found() => {}
            Err(error) => {
                tracing::warn!(pod = self.pod.metadata.name, %error, "cannot write the pod's status")
            }
        }
    }

    fn status(&self, phase: &str, states: &[State]) -> Value {
        let ready = states.iter().all(|state| state.ready);
        let condition =
            |kind: &str, holds: bool| json!({"type": kind, "status": if holds { "True" } else { "False" }});
        let containers = self.pod.spec.containers.iter().zip(states);
        let mut status = json!({
            "phase": phase,
            "hostIP": self.node.options.address.to_string(),
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", true),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
            "containerStatuses": containers.map(|(container, state)| state.json(container)).collect::<Vec<_>>(),
        });
        if self.sandbox.is_some() || self.pod.spec.host_network {
            let ip = self.ip().to_string();
            status["podIPs"] = json!([{"ip": ip}]);
            status["podIP"] = Value::String(ip);
        }
        status
    }

    fn record(&self, phase: &str, states: &[State]) -> Record {
        let meta = &self.pod.metadata;
        let message = states.iter().map(|state| state.message.as_str()).find(|message| !message.is_empty());
        Record {
            cluster: self.node.options.cluster.clone(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
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
        self.node.folders.pods.join(&self.pod.metadata.uid)
    }
}

fn phase(states: &[State]) -> &'static str {
    let done = |good: &dyn Fn(i32) -> bool| states.iter().all(|state| state.done.is_some_and(good));
    match () {
        () if !states.is_empty() && done(&|code| code == 0) => "Succeeded",
        () if !states.is_empty() && done(&|_| true) => "Failed",
        () if states.iter().any(|state| state.pid.is_some() || state.restarts > 0) => "Running",
        () => "Pending",
    }
}

fn over(pod: &Option<Pod>) -> bool {
    pod.as_ref().is_none_or(Pod::ending)
}

fn ending(updates: &Updates) -> bool {
    over(&updates.borrow())
}

/// Waits until the pod is to end; how long its programs may take.
async fn end(updates: &mut Updates) -> Duration {
    match updates.wait_for(over).await.as_deref() {
        Ok(Some(pod)) => pod.grace(),
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
        let state = |pid, done| State { pid, done, ..State::default() };
        assert_eq!(phase(&[state(None, None)]), "Pending");
        assert_eq!(phase(&[state(Some(1), None), state(None, None)]), "Running");
        assert_eq!(phase(&[state(None, Some(0)), state(None, Some(0))]), "Succeeded");
        assert_eq!(phase(&[state(None, Some(0)), state(None, Some(3))]), "Failed");
        assert_eq!(phase(&[State { restarts: 2, ..State::default() }]), "Running");
    }
}
