//! Our rules are equivalent to istio-cni's golden rule sets, but for the differences in `deliberate`: ours are programmed and read back from the kernel, the
//! golden commands are run by the small interpreter in `parse`, and the results are equal. That the comparison detects
//! differences is tested too.

use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use isthmus_kit::lab;
use isthmus_node::rules::{self, HostRules, PodRules};
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{self, Rule, Ruleset, Set, SetKind, Statement, Verdict};

mod deliberate;
mod parse;

use deliberate::deliberate;

/// The probe address in the golden files.
const GOLDEN_PROBE_V6: &str = "e9ac:1e77:90ca:399f:4d6d:ece2:2f9b:3164";

fn main() -> ExitCode {
    lab::main(&lab::tests![
        our_rules_are_equivalent_to_the_golden_files,
        earlier_rules_are_replaced,
        every_changed_line_is_detected,
        the_host_keeps_its_sets_when_its_rules_are_rewritten,
    ])
}

/// The namespace that a golden file is for.
enum Subject {
    Pod(PodRules),
    Host(HostRules),
}

struct Golden {
    name: &'static str,
    text: &'static str,
    subject: Subject,
}

macro_rules! golden {
    ($name:literal, $subject:expr) => {
        Golden {
            name: $name,
            text: include_str!(concat!("../../fixtures/nftables/", $name, ".golden")),
            subject: $subject,
        }
    };
}

fn goldens() -> anyhow::Result<Vec<Golden>> {
    let probe_v6 = GOLDEN_PROBE_V6.parse()?;
    let pod = |dns_capture, ingress_mode, interfaces: &[&str], ipv6| {
        let virtual_interfaces = interfaces.iter().map(|name| (*name).to_owned()).collect();
        let rules =
            PodRules { dns_capture, ingress_mode, ipv6, virtual_interfaces, probe_v6, ..PodRules::default() };
        Subject::Pod(rules)
    };
    let host = |ipv6| Subject::Host(HostRules { kubelet_uid: 1000, ipv6, probe_v6, ..HostRules::default() });
    let vm = ["fake1s0f0", "fake1s0f1"];
    Ok(vec![
        golden!("default", pod(true, false, &[], false)),
        golden!("default_ipv6", pod(true, false, &[], true)),
        golden!("dns_pod_disabled_and_on_globally", pod(false, false, &[], false)),
        golden!("dns_pod_disabled_and_on_globally_ipv6", pod(false, false, &[], true)),
        golden!("dns_pod_enabled_and_off_globally", pod(true, false, &[], false)),
        golden!("dns_pod_enabled_and_off_globally_ipv6", pod(true, false, &[], true)),
        golden!("ingress", pod(false, true, &[], false)),
        golden!("ingress_ipv6", pod(false, true, &[], true)),
        golden!("virtual_interfaces", pod(false, false, &vm, false)),
        golden!("virtual_interfaces_ipv6", pod(false, false, &vm, true)),
        golden!("ingress_and_virtual_interfaces", pod(false, true, &vm, false)),
        golden!("ingress_and_virtual_interfaces_ipv6", pod(false, true, &vm, true)),
        golden!("hostprobe", host(false)),
        golden!("hostprobe_ipv6", host(true)),
    ])
}

impl Golden {
    fn apply(&self, netns: &Netns) -> anyhow::Result<()> {
        match &self.subject {
            Subject::Pod(pod) => rules::apply_pod(netns, pod)?,
            Subject::Host(host) => rules::apply_host(netns, host)?,
        }
        Ok(())
    }
}

/// The part of a rule set that decides about packets: without counters, and without sets, which the golden files assume.
fn meaning(mut ruleset: Ruleset) -> Ruleset {
    for table in &mut ruleset.tables {
        table.sets.clear();
        for rule in table.chains.iter_mut().flat_map(|chain| &mut chain.rules) {
            rule.statements.retain(|statement| *statement != Statement::Counter);
        }
    }
    ruleset.canonical()
}

fn our_rules_are_equivalent_to_the_golden_files() -> anyhow::Result<()> {
    for golden in goldens()? {
        let netns = Netns::create()?;
        golden.apply(&netns)?;
        let ours = meaning(nft::dump(&netns)?);
        let theirs = meaning(parse::run(&deliberate(golden.text)?, Ruleset::default())?);
        ensure!(ours == theirs, "{}: ours\n{ours}\ntheirs\n{theirs}", golden.name);
        golden.apply(&netns)?;
        ensure!(meaning(nft::dump(&netns)?) == ours, "{}: applying twice changed something", golden.name);
    }
    Ok(())
}

/// The golden commands start with `add` and `flush`; ours must replace earlier rules just as well.
fn earlier_rules_are_replaced() -> anyhow::Result<()> {
    for golden in goldens()? {
        let netns = Netns::create()?;
        golden.apply(&netns)?;
        let clean = nft::dump(&netns)?;
        nft::apply(&netns, &soiled(clean.clone()))?;
        ensure!(nft::dump(&netns)? != clean);
        golden.apply(&netns)?;
        ensure!(nft::dump(&netns)? == clean, "{}: a rule of before is left", golden.name);
    }
    Ok(())
}

/// The same with one more rule in each chain.
fn soiled(mut ruleset: Ruleset) -> Ruleset {
    let stale = Rule::new([Statement::Mark { mask: u32::MAX, op: nft::Op::Eq, value: 0xbad }, DROP]);
    let chains = ruleset.tables.iter_mut().flat_map(|table| &mut table.chains);
    chains.for_each(|chain| chain.rules.push(stale.clone()));
    ruleset
}

const DROP: Statement = Statement::Verdict(Verdict::Drop);

fn every_changed_line_is_detected() -> anyhow::Result<()> {
    for golden in goldens()? {
        let netns = Netns::create()?;
        golden.apply(&netns)?;
        let ours = meaning(nft::dump(&netns)?);
        let text = deliberate(golden.text)?;
        ensure!(same(&text, &ours), "{}: the unchanged file differs", golden.name);
        let lines: Vec<&str> = text.lines().collect();
        for at in 0..lines.len() {
            let mut understood = 0;
            for changed in std::iter::once(None).chain(changes(lines[at]).into_iter().map(Some)) {
                let mut mutant: Vec<&str> = lines.clone();
                match &changed {
                    None => drop(mutant.remove(at)),
                    Some(line) => mutant[at] = line,
                }
                let mutant = mutant.join("\n");
                understood += usize::from(parse::run(&mutant, Ruleset::default()).is_ok());
                if same(&mutant, &ours) {
                    bail!("{}: {:?} instead of {:?} makes no difference", golden.name, changed, lines[at]);
                }
            }
            // Some changes must differ in meaning, not only fail to parse.
            let decides = lines[at].starts_with("add rule") || lines[at].contains("hook");
            ensure!(understood > 0 || !decides, "{}: no change of {:?} is a command", golden.name, lines[at]);
        }
    }
    Ok(())
}

/// Whether the commands result in `ours`, on a clean host and on one with tables and more of an earlier run.
fn same(commands: &str, ours: &Ruleset) -> bool {
    let outcome =
        |before: Ruleset| parse::run(commands, before).map(meaning).is_ok_and(|theirs| theirs == *ours);
    outcome(Ruleset::default()) && outcome(soiled(ours.clone()))
}

/// The line with one word changed, for each word and each relevant way. Counters decide about no packet.
fn changes(line: &str) -> Vec<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut changed = Vec::new();
    for (at, word) in words.iter().enumerate().filter(|(_, word)| **word != "counter") {
        for other in instead_of(word) {
            let mut words: Vec<&str> = words.clone();
            words[at] = &other;
            changed.push(words.join(" "));
        }
    }
    changed
}

fn instead_of(word: &str) -> Vec<String> {
    const SWAPS: [(&str, &str); 13] = [
        ("==", "!="),
        ("tcp", "udp"),
        ("accept", "return"),
        ("accept", "drop"),
        ("saddr", "daddr"),
        ("sport", "dport"),
        ("iifname", "oifname"),
        ("lo", "eth0"),
        ("prerouting", "output"),
        ("istio-prerouting", "istio-output"),
        ("nat", "filter"),
        ("filter", "route"),
        ("istio-ambient-nat", "istio-ambient-mangle"),
    ];
    let swapped = SWAPS.iter().filter_map(|(a, b)| match word {
        word if word == *a => Some((*b).to_owned()),
        word if word == *b => Some((*a).to_owned()),
        _ => None,
    });
    let mut others: Vec<String> = swapped.collect();
    // Every last digit one lower or higher, every other word misspelt.
    let mut letters: Vec<char> = word.chars().collect();
    match letters.pop() {
        Some(last @ '0'..='8') => letters.push(char::from_u32(u32::from(last) + 1).unwrap_or('0')),
        Some('9') => letters.push('8'),
        Some(last) => letters.extend([last, 'x']),
        None => {}
    }
    others.push(letters.into_iter().collect());
    others
}

fn the_host_keeps_its_sets_when_its_rules_are_rewritten() -> anyhow::Result<()> {
    let netns = Netns::create()?;
    let host = HostRules { kubelet_uid: 1000, ..HostRules::default() };
    rules::apply_host(&netns, &host)?;
    let sets = || -> anyhow::Result<Vec<Set>> {
        Ok(nft::dump(&netns)?.table("istio-ambient-nat").context("the table")?.sets.clone())
    };
    let named: Vec<_> = sets()?.into_iter().map(|set| (set.name, set.kind)).collect();
    let expected =
        [("istio-inpod-probes-v4", SetKind::Ipv4Addr), ("istio-inpod-probes-v6", SetKind::Ipv6Addr)];
    ensure!(named == expected.map(|(name, kind)| (name.to_owned(), kind)), "{named:?}");
    // Members stay when the rules are rewritten, and a reused address belongs to its new pod.
    rules::add_host_probe(&netns, "10.0.0.7".parse()?, "pod-a")?;
    rules::add_host_probe(&netns, "::ffff:10.0.0.7".parse()?, "pod-b")?;
    rules::add_host_probe(&netns, "fd00::7".parse()?, "pod-b")?;
    rules::apply_host(&netns, &host)?;
    let members: Vec<_> =
        rules::host_probes(&netns)?.into_iter().map(|e| (e.address.to_string(), e.comment)).collect();
    let of_b = || Some("pod-b".to_owned());
    ensure!(members == [("10.0.0.7".to_owned(), of_b()), ("fd00::7".to_owned(), of_b())], "{members:?}");
    rules::remove_host_probe(&netns, "10.0.0.7".parse()?)?;
    rules::remove_host_probe(&netns, "10.0.0.7".parse()?)?;
    ensure!(rules::host_probes(&netns)?.len() == 1);
    rules::remove_host(&netns)?;
    rules::remove_host(&netns)?;
    ensure!(nft::dump(&netns)? == Ruleset::default());
    Ok(())
}
