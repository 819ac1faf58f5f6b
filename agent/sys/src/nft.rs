//! nftables without the `nft` binary: rule sets as values, replaced in one atomic transaction over netlink, read back
//! from the kernel, and displayed as the commands of `nft`. It must not know what the rules are for.
//!
//! A compiler with three representations:
//!
//! ```text
//! ast      statements, as `nft` has them          tcp dport 15008
//!   │ lower        ▲ lift
//! expr     instructions of the kernel's VM        load l4proto; equal 6; load transport+2; equal 15008
//!   │ wire, message ▲ wire, read
//! netlink  messages of nfnetlink's nf_tables
//! ```
//!
//! `render` displays the first; `command` and `transaction` turn a rule set into one atomic batch.

use std::io;
use std::net::IpAddr;

use netlink_packet_netfilter::NetfilterProtoFamily;

use crate::netns::Netns;

mod ast;
mod command;
mod error;
mod expr;
mod foreign;
mod lift;
mod lower;
mod message;
mod read;
mod render;
mod transaction;
mod wire;

pub use ast::{
    Base, Chain, ChainKind, Direction, Element, Family, Hook, Match, Op, Policy, Proto, Rule, Ruleset, Set,
    SetKind, Side, Statement, Table, Verdict,
};
pub use error::Error;
pub(crate) use foreign::remove_chains as remove_foreign_chains;

use command::Command;

/// Replaces the tables of a rule set, and only these, in one transaction: afterwards the kernel has exactly the rule
/// set, or on an error what it had before. Idempotent.
///
/// # Errors
/// [`Error::Refused`] names the command that the kernel refused.
pub fn apply(netns: &Netns, ruleset: &Ruleset) -> Result<(), Error> {
    replace(netns, ruleset, &[])
}

/// As [`apply`], and in the same transaction removes other tables, whether they exist or not.
///
/// # Errors
/// As [`apply`].
pub fn replace(netns: &Netns, ruleset: &Ruleset, gone: &[(Family, String)]) -> Result<(), Error> {
    let mut commands = command::remove(gone);
    commands.extend(command::replace(ruleset)?);
    transaction::commit(netns, &commands)
}

/// Removes tables in one transaction. A table that does not exist is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(netns: &Netns, tables: &[(Family, String)]) -> Result<(), Error> {
    transaction::commit(netns, &command::remove(tables))
}

/// As [`apply`], but the tables are a bridge's: they see the frames that bridges of the namespace receive. In their rules
/// [`Statement::EtherType`] must precede what looks at addresses.
///
/// # Errors
/// As [`apply`]; also when the kernel lacks `nf_tables_bridge`.
pub fn apply_to_bridges(netns: &Netns, ruleset: &Ruleset) -> Result<(), Error> {
    transaction::commit_to(netns, NetfilterProtoFamily::Bridge, &command::replace(ruleset)?)
}

/// Removes tables of bridges. A table that does not exist is no error.
///
/// # Errors
/// When the kernel refuses or lacks `nf_tables_bridge`.
pub fn remove_from_bridges(netns: &Netns, tables: &[&str]) -> Result<(), Error> {
    let tables: Vec<_> = tables.iter().map(|name| (Family::Inet, (*name).to_owned())).collect();
    transaction::commit_to(netns, NetfilterProtoFamily::Bridge, &command::remove(&tables))
}

/// As [`apply`], but the tables are of one IP version, as those of iptables are.
///
/// # Errors
/// As [`apply`].
pub fn apply_to_ip(netns: &Netns, v6: bool, ruleset: &Ruleset) -> Result<(), Error> {
    transaction::commit_to(netns, ip(v6), &command::replace(ruleset)?)
}

/// As [`dump`], of the tables of one IP version.
///
/// # Errors
/// As [`dump`].
pub fn dump_ip(netns: &Netns, v6: bool) -> Result<Ruleset, Error> {
    read::ruleset(netns, ip(v6))
}

fn ip(v6: bool) -> NetfilterProtoFamily {
    if v6 { NetfilterProtoFamily::IPv6 } else { NetfilterProtoFamily::IPv4 }
}

/// All `inet` tables of the namespace in canonical form ([`Ruleset::canonical`]). A statement that is not understood
/// is kept as [`Statement::Unknown`], never dropped.
///
/// # Errors
/// When the kernel refuses or its answer does not parse.
pub fn dump(netns: &Netns) -> Result<Ruleset, Error> {
    read::ruleset(netns, NetfilterProtoFamily::Inet)
}

/// Adds an address to a set. An existing element keeps its comment.
///
/// # Errors
/// When there is no such set, the address is of the other family, or the comment is longer than 127 bytes.
pub fn add_element(netns: &Netns, table: &str, set: &str, element: &Element) -> Result<(), Error> {
    transaction::commit(netns, &[add(table, set, element.clone())?])
}

/// Adds an address to a set, replacing an element of the same address and its comment.
///
/// # Errors
/// As [`add_element`].
pub fn set_element(netns: &Netns, table: &str, set: &str, element: &Element) -> Result<(), Error> {
    let address = element.address;
    // Deleting a missing element fails the transaction, and adding an existing one does not: so add, delete, add.
    let commands = [
        add(table, set, element.clone())?,
        Command::DeleteElement { table: table.to_owned(), set: set.to_owned(), address },
        add(table, set, element.clone())?,
    ];
    transaction::commit(netns, &commands)
}

fn add(table: &str, set: &str, element: Element) -> Result<Command, Error> {
    let elements = vec![element.checked()?];
    Ok(Command::AddElements { table: table.to_owned(), set: set.to_owned(), elements })
}

/// Removes an address from a set. A missing element or set is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn del_element(netns: &Netns, table: &str, set: &str, address: IpAddr) -> Result<(), Error> {
    let command = Command::DeleteElement { table: table.to_owned(), set: set.to_owned(), address };
    match transaction::commit(netns, &[command]) {
        Err(Error::Refused { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests;
