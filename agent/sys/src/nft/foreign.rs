//! Chains of another program, in tables that are not ours and that it shares with others: those of `iptables` with its
//! nf_tables back end. Only the named chains go, with the rules that jump to them.

use std::io;

use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::command::Command;
use super::error::Error;
use super::expr::Expr;
use super::read::Reader;
use super::transaction;
use super::wire::{self, find};
use crate::netns::Netns;

/// Attempts when another program changes the rules meanwhile.
const ATTEMPTS: usize = 4;

/// Removes the chains from each table of IPv4 and IPv6 that has all of them. The number of tables.
///
/// # Errors
/// When the kernel refuses; the tables of that family are then as before.
pub(crate) fn remove_chains(netns: &Netns, chains: &[&str]) -> Result<usize, Error> {
    let mut count = 0;
    for family in [NetfilterProtoFamily::IPv4, NetfilterProtoFamily::IPv6] {
        count += retried(|| remove_from(netns, family, chains))?;
    }
    Ok(count)
}

/// A rule that is gone by the time it is removed fails the transaction.
fn retried(mut attempt: impl FnMut() -> Result<usize, Error>) -> Result<usize, Error> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(Error::Refused { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    attempt()
}

fn remove_from(netns: &Netns, family: NetfilterProtoFamily, chains: &[&str]) -> Result<usize, Error> {
    let reader = Reader::open(netns, family)?;
    let mut found: Vec<(String, String)> = Vec::new();
    for one in reader.list("chains", NfTablesMessage::GetChain(ChainMessage { attributes: vec![] }))? {
        let NfTablesMessage::NewChain(one) = one else { continue };
        let names =
            find!(one.attributes, ChainAttribute::Table).zip(find!(one.attributes, ChainAttribute::Name));
        found.extend(names.map(|(table, name)| (table.clone(), name.clone())));
    }
    let has = |table: &str, chain: &str| found.iter().any(|(t, c)| t == table && c == chain);
    let mut tables: Vec<&str> = found.iter().map(|(table, _)| table.as_str()).collect();
    tables.sort_unstable();
    tables.dedup();
    tables.retain(|table| chains.iter().all(|chain| has(table, chain)));
    if tables.is_empty() {
        return Ok(0);
    }
    let mut commands = Vec::new();
    for one in reader.list("rules", NfTablesMessage::GetRule(RuleMessage { attributes: vec![] }))? {
        let NfTablesMessage::NewRule(one) = one else { continue };
        commands.extend(jump(&one.attributes, &tables, chains));
    }
    // All rules before the first chain: a chain that is jumped to cannot be removed.
    for table in &tables {
        for chain in chains {
            let (table, chain) = ((*table).to_owned(), (*chain).to_owned());
            commands.push(Command::DeleteRule { table, chain, handle: None });
        }
    }
    for table in &tables {
        for chain in chains {
            let (table, chain) = ((*table).to_owned(), (*chain).to_owned());
            commands.push(Command::DeleteChain { table, chain });
        }
    }
    transaction::commit_to(netns, family, &commands)?;
    Ok(tables.len())
}

/// The removal of a rule that leads into one of the chains from outside of them.
fn jump(attributes: &[RuleAttribute], tables: &[&str], chains: &[&str]) -> Option<Command> {
    let table = find!(attributes, RuleAttribute::Table)?;
    let chain = find!(attributes, RuleAttribute::Chain)?;
    let handle = find!(attributes, RuleAttribute::Handle)?;
    if !tables.contains(&table.as_str()) || chains.contains(&chain.as_str()) {
        return None;
    }
    let leads = find!(attributes, RuleAttribute::Expressions)?.iter().any(|one| match wire::decode(one) {
        Expr::Verdict { chain: Some(to), .. } => chains.contains(&to.as_str()),
        _ => false,
    });
    leads.then(|| Command::DeleteRule { table: table.clone(), chain: chain.clone(), handle: Some(*handle) })
}
