//! What leaves a node's pods for the network between the clusters comes from the node's address, as in every cluster
//! whose pod network is its own: that network has no route to a pod.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use isthmus_sys::netns::Netns;
use isthmus_sys::nft::{
    self, Base, Chain, ChainKind, Family, Hook, Match, Op, Policy, Rule, Ruleset, Side, Statement, Table,
};

/// Writes the node's rule.
pub fn program(node: &Netns, pods: Ipv4Net, underlay: Ipv4Net, address: Ipv4Addr) -> Result<(), nft::Error> {
    nft::apply(node, &rules(pods, underlay, address))
}

fn rules(pods: Ipv4Net, underlay: Ipv4Net, address: Ipv4Addr) -> Ruleset {
    let rule = Rule::new([
        Statement::Address(Side::Source, Op::Eq, Match::Net(pods.into())),
        Statement::Address(Side::Destination, Op::Eq, Match::Net(underlay.into())),
        Statement::Counter,
        Statement::Snat(address.into()),
    ]);
    let base = Base { kind: ChainKind::Nat, hook: Hook::Postrouting, priority: 100, policy: Policy::Accept };
    let chain = Chain { name: "postrouting".to_owned(), base: Some(base), rules: vec![rule] };
    let table =
        Table { family: Family::Inet, name: "playground".to_owned(), sets: Vec::new(), chains: vec![chain] };
    Ruleset { tables: vec![table] }
}
