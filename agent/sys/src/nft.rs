//! nftables without the `nft` binary: rule sets as values, replaced in one atomic transaction over netlink, read back
//! from the kernel, and printed as the commands `nft` would take. It must not know what the rules are for.
//!
//! Three layers: statements as people write them ([`Statement`]), what the kernel's register machine runs (`expr`), and
//! netlink messages (`message`). Reading goes back the same way.

use std::io;
use std::net::IpAddr;

use crate::netns::Netns;

mod ast;
mod command;
mod expr;
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

use command::Command;

/// Why rules could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused one command, so nothing of the transaction was done.
    #[error("nftables: {command}: {cause}")]
    Refused {
        /// The command in `nft`'s syntax: operation, table, chain, rule.
        command: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The transaction failed as a whole, so nothing was done.
    #[error("nftables transaction in {netns}: {cause}")]
    Transaction {
        /// The namespace.
        netns: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The kernel could not be asked what is there.
    #[error("nftables: list {what}: {cause}")]
    List {
        /// What was asked for.
        what: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// A value that the kernel has no room for.
    #[error("nftables: {0}")]
    Invalid(String),
    /// The namespace could not be entered.
    #[error(transparent)]
    Netns(#[from] crate::Error),
}

/// Replaces the given tables, and only these, with exactly what is given, in one transaction: afterwards everything is
/// as asked, or on an error as before. Doing it twice is the same as once.
///
/// # Errors
/// [`Error::Refused`] names the command that the kernel did not take.
pub fn apply(netns: &Netns, ruleset: &Ruleset) -> Result<(), Error> {
    replace(netns, ruleset, &[])
}

/// As [`apply`], and in the same transaction removes other tables, there or not.
///
/// # Errors
/// As [`apply`].
pub fn replace(netns: &Netns, ruleset: &Ruleset, gone: &[(Family, String)]) -> Result<(), Error> {
    let mut commands = command::remove(gone);
    commands.extend(command::replace(ruleset)?);
    transaction::commit(netns, &commands)
}

/// Removes tables in one transaction. A table that is not there is no error.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(netns: &Netns, tables: &[(Family, String)]) -> Result<(), Error> {
    transaction::commit(netns, &command::remove(tables))
}

/// All `inet` tables of the namespace in canonical form ([`Ruleset::canonical`]). What is not understood is kept as
/// [`Statement::Unknown`], never dropped.
///
/// # Errors
/// When the kernel refuses or its answer cannot be read.
pub fn dump(netns: &Netns) -> Result<Ruleset, Error> {
    read::ruleset(netns)
}

/// Adds an address to a set, or does nothing when it is there: its comment then stays as it was.
///
/// # Errors
/// When there is no such set, the address is of the other family, or the comment is longer than 127 bytes.
pub fn add_element(netns: &Netns, table: &str, set: &str, element: &Element) -> Result<(), Error> {
    transaction::commit(netns, &[add(table, set, element.clone())?])
}

/// Adds an address to a set, in place of an entry of the same address with another comment.
///
/// # Errors
/// As [`add_element`].
pub fn set_element(netns: &Netns, table: &str, set: &str, element: &Element) -> Result<(), Error> {
    let address = element.address;
    // Adding first makes deleting succeed whether it was there or not.
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

/// Takes an address out of a set. An address that is not there, or no set at all, is no error.
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
