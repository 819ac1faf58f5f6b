//! The host's table: it gives the kubelet's probes to enrolled pods one known source address, which the pods' rules let
//! through. Without it a probe would be redirected to the agent and refused by strict mTLS.

use std::net::IpAddr;

use isthmus_sys::nft::{
    Base, Chain, ChainKind, Family, Hook, Match, Op, Policy, Proto, Rule, Ruleset, Set, SetKind, Side,
    Statement, Table, Verdict,
};

use super::config::{HostRules, NAT, families};

/// The guard's table. Not the pods' name: a network plugin may run in the host's namespace with both.
pub(super) const GUARD: &str = "isthmus-host-guard";

/// The probe sets: addresses of enrolled pods, one set per family.
pub(super) const SETS: [&str; 2] = ["istio-inpod-probes-v4", "istio-inpod-probes-v6"];

/// The host's table.
#[must_use]
pub fn host_ruleset(rules: &HostRules) -> Ruleset {
    let families = families(rules.ipv6, rules.probe_v4, rules.probe_v6);
    let set = |(kind, _): &(SetKind, IpAddr)| Set {
        name: set_name(*kind).to_owned(),
        kind: *kind,
        elements: rules
            .members
            .iter()
            .filter(|member| SetKind::of(member.address) == *kind)
            .cloned()
            .collect(),
    };
    let snat = |(kind, probe): &(SetKind, IpAddr)| {
        let pods = Match::Set { kind: *kind, name: set_name(*kind).to_owned() };
        Rule::new([
            Statement::L4Proto(Proto::Tcp),
            Statement::SocketUid(Op::Eq, rules.kubelet_uid),
            Statement::Address(Side::Destination, Op::Eq, pods),
            Statement::Counter,
            Statement::Snat(*probe),
        ])
    };
    let chain = Chain {
        name: "postrouting".to_owned(),
        base: Some(Base {
            kind: ChainKind::Nat,
            hook: Hook::Postrouting,
            priority: 100,
            policy: Policy::Accept,
        }),
        rules: families.iter().map(snat).collect(),
    };
    let sets = families.iter().map(set).collect();
    Ruleset { tables: vec![Table { family: Family::Inet, name: NAT.to_owned(), sets, chains: vec![chain] }] }
}

/// The guard table: the address that exempts probes from a pod's rules is the host's alone.
#[must_use]
pub fn host_guard(rules: &HostRules) -> Ruleset {
    guard(rules, |_| None)
}

/// The guard table of bridges. A pod that sends from that address to its neighbour on the bridge passes no other rule of
/// the host, and could take the answers by announcing the gateway's address.
#[must_use]
pub fn bridge_guard(rules: &HostRules) -> Ruleset {
    guard(rules, |kind| Some(Statement::EtherType(kind)))
}

fn guard(rules: &HostRules, first: impl Fn(SetKind) -> Option<Statement>) -> Ruleset {
    let drop = |(kind, probe): &(SetKind, IpAddr)| {
        let from = Statement::Address(Side::Source, Op::Eq, Match::Net((*probe).into()));
        let rest = [from, Statement::Counter, Statement::Verdict(Verdict::Drop)];
        Rule::new(first(*kind).into_iter().chain(rest).collect::<Vec<_>>())
    };
    let base =
        Base { kind: ChainKind::Filter, hook: Hook::Prerouting, priority: -300, policy: Policy::Accept };
    let chain = Chain {
        name: "prerouting".to_owned(),
        base: Some(base),
        rules: families(rules.ipv6, rules.probe_v4, rules.probe_v6).iter().map(drop).collect(),
    };
    Ruleset {
        tables: vec![Table {
            family: Family::Inet,
            name: GUARD.to_owned(),
            sets: Vec::new(),
            chains: vec![chain],
        }],
    }
}

/// The probe set of an address's family.
pub(super) fn set_of(address: IpAddr) -> &'static str {
    set_name(SetKind::of(address))
}

fn set_name(kind: SetKind) -> &'static str {
    match kind {
        SetKind::Ipv4Addr => SETS[0],
        SetKind::Ipv6Addr => SETS[1],
    }
}
