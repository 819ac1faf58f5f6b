//! A transaction as a list of commands, with the meaning they have in `nft`.

use std::net::IpAddr;

use super::ast::{Base, Element, Family, Rule, Ruleset, SetKind, Statement};
use super::error::Error;

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    AddTable {
        table: String,
    },
    DeleteTable {
        table: String,
    },
    AddSet {
        table: String,
        set: String,
        kind: SetKind,
    },
    AddElements {
        table: String,
        set: String,
        elements: Vec<Element>,
    },
    DeleteElement {
        table: String,
        set: String,
        address: IpAddr,
    },
    AddChain {
        table: String,
        chain: String,
        base: Option<Base>,
    },
    AddRule {
        table: String,
        chain: String,
        rule: Rule,
    },
    /// Without a handle, all rules of the chain.
    DeleteRule {
        table: String,
        chain: String,
        handle: Option<u64>,
    },
    DeleteChain {
        table: String,
        chain: String,
    },
}

/// The commands that replace the tables of a rule set.
pub(super) fn replace(ruleset: &Ruleset) -> Result<Vec<Command>, Error> {
    let mut commands = Vec::new();
    for table in &ruleset.tables {
        let Family::Inet = table.family;
        let name = || table.name.clone();
        commands.extend(remove(&[(table.family, name())]));
        commands.push(Command::AddTable { table: name() });
        for set in &table.sets {
            commands.push(Command::AddSet { table: name(), set: set.name.clone(), kind: set.kind });
            let elements =
                set.elements.iter().cloned().map(Element::checked).collect::<Result<Vec<_>, _>>()?;
            if !elements.is_empty() {
                commands.push(Command::AddElements { table: name(), set: set.name.clone(), elements });
            }
        }
        // All chains before the first rule, because rules may jump to any of them.
        for chain in &table.chains {
            commands.push(Command::AddChain { table: name(), chain: chain.name.clone(), base: chain.base });
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                let command =
                    Command::AddRule { table: name(), chain: chain.name.clone(), rule: rule.clone() };
                if rule.statements.iter().any(|s| matches!(s, Statement::Unknown(_))) {
                    return Err(Error::UnknownStatement { command: command.to_string() });
                }
                commands.push(command);
            }
        }
    }
    Ok(commands)
}

/// The commands that remove tables, whether they exist or not: deleting a missing table fails the transaction, so each
/// is added first.
pub(super) fn remove(tables: &[(Family, String)]) -> Vec<Command> {
    let both = |(Family::Inet, table): &(Family, String)| {
        [Command::AddTable { table: table.clone() }, Command::DeleteTable { table: table.clone() }]
    };
    tables.iter().flat_map(both).collect()
}
