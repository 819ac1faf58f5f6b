//! Ways for an enrolled pod to lose its capture: each is found and the pod closed in less than five seconds, and what was
//! lost is put back where it can be.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_kit::process::Process;
use isthmus_kit::wait::until;
use isthmus_kit::{lab, probe};
use isthmus_node::rules::{LOCAL_TABLE, MARK_MASK, RULE_PREFERENCE, SPOOFED_MARK};
use isthmus_sys::capture::Capture;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{self, Base, Chain, ChainKind, Family, Hook, Policy, Rule, Ruleset, Statement, Table};
use isthmus_sys::route;

use super::node_lab::{APP, Captured, NodeLab, Pod, call};
use super::{MODE, is_in};

/// The goal.
const GOAL: Duration = Duration::from_secs(5);

/// What must have happened within the goal.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    /// What was lost is back.
    Restored,
    /// The pod is closed and `pending`, until the attack is undone.
    Closed,
}

type Step = fn(&Netns) -> Result<()>;

const ATTACKS: [(&str, Outcome, Step, Step); 8] = [
    ("flush", Outcome::Restored, flush, nothing),
    ("a rule deleted", Outcome::Restored, delete_a_rule, nothing),
    ("a table replaced", Outcome::Restored, replace_a_table, nothing),
    ("a table deleted", Outcome::Restored, delete_a_table, nothing),
    (
        "the route gone",
        Outcome::Restored,
        |pod| Ok(route::del_local_default(pod, false, LOCAL_TABLE)?),
        nothing,
    ),
    ("the routing rule gone", Outcome::Restored, delete_the_routing_rule, nothing),
    ("packets marked as the agent's", Outcome::Closed, mark_everything, unmark),
    ("tc redirect", Outcome::Closed, redirect, unredirect),
];

fn nothing(_: &Netns) -> Result<()> {
    Ok(())
}

fn flush(pod: &Netns) -> Result<()> {
    let all: Vec<_> = nft::dump(pod)?.tables.into_iter().map(|table| (table.family, table.name)).collect();
    ensure!(all.len() >= 3, "{all:?}");
    Ok(nft::remove(pod, &all)?)
}

fn nat(pod: &Netns) -> Result<Table> {
    let found = nft::dump(pod)?;
    found.table("istio-ambient-nat").cloned().context("no nat table")
}

fn delete_a_rule(pod: &Netns) -> Result<()> {
    let mut table = nat(pod)?;
    let output = table.chains.iter_mut().find(|chain| chain.name == "istio-output").context("no chain")?;
    output.rules.pop();
    Ok(nft::apply(pod, &Ruleset { tables: vec![table] })?)
}

fn replace_a_table(pod: &Netns) -> Result<()> {
    let mut table = nat(pod)?;
    table.chains.iter_mut().for_each(|chain| chain.rules.clear());
    Ok(nft::apply(pod, &Ruleset { tables: vec![table] })?)
}

fn delete_a_table(pod: &Netns) -> Result<()> {
    Ok(nft::remove(pod, &[(Family::Inet, "istio-ambient-mangle".to_owned())])?)
}

fn delete_the_routing_rule(pod: &Netns) -> Result<()> {
    Ok(route::del_fwmark_rule(pod, false, SPOOFED_MARK, MARK_MASK, LOCAL_TABLE, RULE_PREFERENCE)?)
}

/// A table of another program that gives every packet the agent's mark: the rules are all there and match nothing.
fn mark_everything(pod: &Netns) -> Result<()> {
    let mark = [Statement::SetCtMark { keep: 0, set: 0x539 }, Statement::SetMarkFromCt];
    let base = Base { kind: ChainKind::Route, hook: Hook::Output, priority: -190, policy: Policy::Accept };
    let chain = Chain { name: "out".to_owned(), base: Some(base), rules: vec![Rule::new(mark)] };
    let table = Table { family: Family::Inet, name: "other".to_owned(), sets: vec![], chains: vec![chain] };
    Ok(nft::apply(pod, &Ruleset { tables: vec![table] })?)
}

fn unmark(pod: &Netns) -> Result<()> {
    Ok(nft::remove(pod, &[(Family::Inet, "other".to_owned())])?)
}

fn tc(pod: &Netns, args: &str) -> Result<()> {
    let ran = pod.run_thread(|| Command::new("tc").args(args.split(' ')).output())?.context("tc")?;
    ensure!(ran.status.success(), "tc {args}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

fn redirect(pod: &Netns) -> Result<()> {
    tc(pod, "qdisc add dev eth0 clsact")?;
    tc(pod, "filter add dev eth0 ingress protocol ip u32 match u32 0 0 action mirred egress redirect dev lo")
}

fn unredirect(pod: &Netns) -> Result<()> {
    tc(pod, "qdisc del dev eth0 clsact")
}

/// The pod `a`, captured, and the pod `b` that it calls.
struct Victim {
    lab: NodeLab,
    a: Pod,
    b: Pod,
    node: Process,
    intact: Captured,
}

impl Victim {
    async fn captured(&self) -> Result<()> {
        let captured = async || self.lab.counts_as_captured("a").await.is_ok_and(|it| it == Some(true));
        until("the pod counts as captured", captured).await?;
        until("the rules are back", async || self.a.captured().is_ok_and(|now| now == self.intact)).await?;
        is_in(&self.lab, "a", &self.a, true).await
    }

    async fn attack(&self, (name, outcome, attack, undo): (&str, Outcome, Step, Step)) -> Result<()> {
        let (begun, pod) = (Instant::now(), &self.a.host.netns);
        attack(pod).with_context(|| name.to_owned())?;
        self.node.line(&["pod is not captured, closing it"]).await?;
        if outcome == Outcome::Restored {
            self.captured().await.with_context(|| name.to_owned())?;
        } else {
            let closed = async || self.lab.counts_as_captured("a").await.is_ok_and(|it| it == Some(false));
            until("the pod does not count as captured", closed).await?;
            self.lab.api.redirected("sample/a", Some("pending")).await?;
        }
        let took = begun.elapsed();
        println!("{name}: {outcome:?} after {took:?}");
        ensure!(took < GOAL, "{name}: {took:?}");
        let wire = Capture::open(&self.b.host.netns, "eth0")?;
        let sockets = self.a.host.sockets();
        let answer = tokio::time::timeout(Duration::from_secs(2), call(&sockets, self.b.app())).await;
        let answered = answer.is_ok_and(|answer| answer.is_ok());
        ensure!(answered == (outcome == Outcome::Restored), "{name}: answered is {answered}");
        let plain = probe::syns_from(&wire.drain(), self.a.host.v4.into(), APP);
        ensure!(plain == 0, "{name}: {plain} connections left past the agent");
        undo(pod).with_context(|| name.to_owned())?;
        self.captured().await.with_context(|| format!("{name}, undone"))
    }

    /// Processes of the pod in a namespace with a road of its own.
    async fn second_namespace(&self) -> Result<()> {
        let begun = Instant::now();
        let other = self.lab.host()?;
        ensure!(call(&other.sockets(), self.b.app()).await.is_ok(), "control: the road exists");
        let process = self.lab.process("a", &other.netns)?;
        self.node.line(&["pod is not captured, closing it", "another network namespace"]).await?;
        self.lab.api.redirected("sample/a", Some("pending")).await?;
        let took = begun.elapsed();
        println!("a second namespace: closed after {took:?}");
        ensure!(took < GOAL, "{took:?}");
        let answer = tokio::time::timeout(Duration::from_secs(2), call(&other.sockets(), self.b.app())).await;
        ensure!(!answer.is_ok_and(|answer| answer.is_ok()), "the second namespace is open");
        nix::mount::umount2(&process.join("ns/net"), nix::mount::MntFlags::MNT_DETACH)?;
        std::fs::remove_dir_all(process)?;
        self.captured().await
    }
}

pub(crate) fn a_pod_that_loses_its_capture_is_closed_within_five_seconds() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let (a, b) = (lab.running("a")?, lab.running("b")?);
        let pods = [("a", &a), ("b", &b)];
        let agent = {
            lab.api.label("namespaces", "sample", MODE, Some("ambient"));
            lab.agent(&pods, "")?
        };
        let node = lab.node().await?;
        is_in(&lab, "a", &a, true).await?;
        is_in(&lab, "b", &b, true).await?;
        let intact = a.captured()?;
        let victim = Victim { lab, a, b, node, intact };
        for attack in ATTACKS {
            victim.attack(attack).await?;
        }
        victim.second_namespace().await?;

        // The agent's listeners are gone: redirected traffic is refused, and what is not redirected is dropped.
        let begun = Instant::now();
        drop(agent);
        let closed = async || victim.lab.counts_as_captured("a").await.is_ok_and(|it| it == Some(false));
        until("the pod does not count as captured", closed).await?;
        // The finding is counted before the rules are written.
        let chain = async || victim.a.captured().is_ok_and(|rules| rules != victim.intact);
        until("the closing chain is there", chain).await?;
        ensure!(begun.elapsed() < GOAL, "{:?}", begun.elapsed());
        println!("the listener dead: closed after {:?}", begun.elapsed());
        ensure!(victim.lab.api.redirection("sample/a").as_deref() == Some("enabled"));
        let _agent = victim.lab.agent(&[("a", &victim.a), ("b", &victim.b)], "")?;
        victim.captured().await
    })
}

/// A pod whose packets pass netfilter by when it is enrolled, as those of Kata Containers do.
pub(crate) fn a_pod_with_a_road_past_its_rules_is_not_enabled() -> Result<()> {
    lab::block_on(async {
        let lab = NodeLab::new()?;
        lab.serve_api()?;
        let pod = lab.running("a")?;
        redirect(&pod.host.netns)?;
        let (_agent, node) = (lab.agent(&[("a", &pod)], "")?, lab.node().await?);
        lab.mode("a", Some("ambient"));
        node.line(&["will be retried", "traffic control filter at the ingress of eth0"]).await?;
        lab.api.redirected("sample/a", Some("pending")).await?;
        ensure!(lab.counts_as_captured("a").await? == Some(false));
        ensure!(
            call(&pod.host.sockets(), std::net::SocketAddr::new(lab.outsider.v4.into(), APP)).await.is_err()
        );
        unredirect(&pod.host.netns)?;
        is_in(&lab, "a", &pod, true).await?;
        ensure!(lab.counts_as_captured("a").await? == Some(true));
        let first = lab.proved_at("a").await?;
        ensure!(first.is_some(), "no time of the proof");
        until("it is proved again", async || lab.proved_at("a").await.is_ok_and(|again| again > first))
            .await?;
        ensure!(
            call(&pod.host.sockets(), std::net::SocketAddr::new(lab.outsider.v4.into(), APP)).await.is_ok()
        );

        // The runtime removes the sandbox before the pod's object goes: that is no loss.
        let last = lab.proved_at("a").await?;
        route::del_link(&pod.host.netns, "eth0")?;
        until("nothing can leave it", async || lab.proved_at("a").await.is_ok_and(|again| again > last))
            .await?;
        ensure!(lab.counts_as_captured("a").await? == Some(true));
        Ok(())
    })
}
