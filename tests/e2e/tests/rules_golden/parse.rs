//! Just enough of `nft`: commands as text, run against a rule set in memory. An unknown command is an error.

use anyhow::{Context, bail, ensure};
use isthmus_sys::nft::{
    Base, Chain, ChainKind, Direction, Family, Hook, Match, Op, Policy, Proto, Rule, Ruleset, SetKind, Side,
    Statement, Table, Verdict,
};

/// Runs the commands on top of `state`.
pub(crate) fn run(commands: &str, mut state: Ruleset) -> anyhow::Result<Ruleset> {
    for line in commands.lines().filter(|line| !line.trim().is_empty()) {
        command(line, &mut state).with_context(|| format!("in line {line:?}"))?;
    }
    Ok(state)
}

fn command(line: &str, state: &mut Ruleset) -> anyhow::Result<()> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["add", "table", "inet", name] => {
            if state.table(name).is_none() {
                let name = (*name).to_owned();
                state.tables.push(Table { family: Family::Inet, name, sets: vec![], chains: vec![] });
            }
        }
        ["flush", "table", "inet", name] => {
            table(state, name)?.chains.iter_mut().for_each(|chain| chain.rules.clear());
        }
        ["add", "chain", "inet", in_table, name, rest @ ..] => {
            let base = base(rest)?;
            let table = table(state, in_table)?;
            match table.chains.iter().find(|chain| chain.name == *name) {
                Some(known) => ensure!(known.base == base, "chain {name} is there and differs"),
                None => table.chains.push(Chain { name: (*name).to_owned(), base, rules: vec![] }),
            }
        }
        ["add", "rule", "inet", in_table, name, rest @ ..] => {
            let rule = Rule::new(statements(rest)?);
            let table = table(state, in_table)?;
            for statement in &rule.statements {
                if let Statement::Verdict(Verdict::Jump(to)) = statement {
                    ensure!(table.chains.iter().any(|chain| chain.name == *to), "no chain {to} to jump to");
                }
            }
            let chain = table.chains.iter_mut().find(|chain| chain.name == *name);
            chain.with_context(|| format!("no chain {name}"))?.rules.push(rule);
        }
        _ => bail!("unknown command"),
    }
    Ok(())
}

fn table<'a>(state: &'a mut Ruleset, name: &str) -> anyhow::Result<&'a mut Table> {
    state.tables.iter_mut().find(|table| table.name == name).with_context(|| format!("no table {name}"))
}

fn base(words: &[&str]) -> anyhow::Result<Option<Base>> {
    let ["{", "type", kind, "hook", hook, "priority", priority, ";", "}"] = words else {
        ensure!(words.is_empty(), "unknown chain options {words:?}");
        return Ok(None);
    };
    let kind = match *kind {
        "filter" => ChainKind::Filter,
        "nat" => ChainKind::Nat,
        "route" => ChainKind::Route,
        kind => bail!("unknown type {kind}"),
    };
    let hook = match *hook {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        hook => bail!("unknown hook {hook}"),
    };
    Ok(Some(Base { kind, hook, priority: priority.parse()?, policy: Policy::Accept }))
}

fn statements(words: &[&str]) -> anyhow::Result<Vec<Statement>> {
    let mut statements = Vec::new();
    let mut rest = words;
    while !rest.is_empty() {
        let statement;
        (statement, rest) = one(rest)?;
        statements.push(statement);
    }
    Ok(statements)
}

type Parsed<'a, 'b> = anyhow::Result<(Statement, &'a [&'b str])>;

fn one<'a, 'b>(words: &'a [&'b str]) -> Parsed<'a, 'b> {
    Ok(match words {
        ["ct", "mark", "set", "ct", "mark", "&" | "and", keep, "|" | "or", set, rest @ ..] => {
            (Statement::SetCtMark { keep: number(keep)?, set: number(set)? }, rest)
        }
        ["meta", "mark", "set", "ct", "mark", rest @ ..] => (Statement::SetMarkFromCt, rest),
        ["ct", "zone", "set", zone, rest @ ..] => (Statement::SetCtZone(zone.parse()?), rest),
        ["ct", "original", "zone", "set", zone, rest @ ..] => {
            (Statement::SetCtOriginalZone(zone.parse()?), rest)
        }
        ["ct", "mark", rest @ ..] => {
            let (mask, op, value, rest) = masked(rest)?;
            (Statement::CtMark { mask, op, value }, rest)
        }
        ["meta", "mark", rest @ ..] | ["mark", rest @ ..] => {
            let (mask, op, value, rest) = masked(rest)?;
            (Statement::Mark { mask, op, value }, rest)
        }
        ["meta", "l4proto", name, rest @ ..] => (Statement::L4Proto(proto(name)?), rest),
        ["meta", "skuid", rest @ ..] | ["skuid", rest @ ..] => {
            let (op, value, rest) = compared(rest)?;
            (Statement::SocketUid(op, value.parse()?), rest)
        }
        ["iifname", rest @ ..] => {
            let (op, name, rest) = compared(rest)?;
            (Statement::Interface(Direction::In, op, name.to_owned()), rest)
        }
        ["oifname", rest @ ..] => {
            let (op, name, rest) = compared(rest)?;
            (Statement::Interface(Direction::Out, op, name.to_owned()), rest)
        }
        [header @ ("ip" | "ip6"), field, rest @ ..] => address(header, field, rest)?,
        [name @ ("tcp" | "udp"), field, rest @ ..] => {
            let (op, port, rest) = compared(rest)?;
            (Statement::Port(proto(name)?, side(field, "port")?, op, port.parse()?), rest)
        }
        ["counter", rest @ ..] => (Statement::Counter, rest),
        ["redirect", "to", port, rest @ ..] => {
            (Statement::Redirect(port.strip_prefix(':').context("no colon")?.parse()?), rest)
        }
        ["snat", "to", to, rest @ ..] => (Statement::Snat(to.parse()?), rest),
        ["accept", rest @ ..] => (Statement::Verdict(Verdict::Accept), rest),
        ["drop", rest @ ..] => (Statement::Verdict(Verdict::Drop), rest),
        ["return", rest @ ..] => (Statement::Verdict(Verdict::Return), rest),
        ["jump", chain, rest @ ..] => (Statement::Verdict(Verdict::Jump((*chain).to_owned())), rest),
        _ => bail!("unknown statement {words:?}"),
    })
}

fn address<'a, 'b>(header: &str, field: &str, rest: &'a [&'b str]) -> Parsed<'a, 'b> {
    let kind = if header == "ip" { SetKind::Ipv4Addr } else { SetKind::Ipv6Addr };
    let (op, value, rest) = compared(rest)?;
    let to = match (value.strip_prefix('@'), value.contains('/')) {
        (Some(name), _) => Match::Set { kind, name: name.to_owned() },
        (None, true) => Match::Net(value.parse()?),
        (None, false) => Match::Net(value.parse::<std::net::IpAddr>()?.into()),
    };
    ensure!(to.kind() == kind, "{value} is no {header} address");
    Ok((Statement::Address(side(field, "addr")?, op, to), rest))
}

/// `& mask op value` or `op value`.
fn masked<'a, 'b>(words: &'a [&'b str]) -> anyhow::Result<(u32, Op, u32, &'a [&'b str])> {
    let (mask, rest) = match words {
        ["&" | "and", mask, rest @ ..] => (number(mask)?, rest),
        rest => (u32::MAX, rest),
    };
    let (op, value, rest) = compared(rest)?;
    Ok((mask, op, number(value)?, rest))
}

/// `value`, `== value` or `!= value`.
fn compared<'a, 'b>(words: &'a [&'b str]) -> anyhow::Result<(Op, &'b str, &'a [&'b str])> {
    match words {
        ["==", value, rest @ ..] => Ok((Op::Eq, value, rest)),
        ["!=", value, rest @ ..] => Ok((Op::Ne, value, rest)),
        [value, rest @ ..] => Ok((Op::Eq, value, rest)),
        [] => bail!("nothing to compare with"),
    }
}

fn side(field: &str, what: &str) -> anyhow::Result<Side> {
    match field.strip_suffix(what) {
        Some("s") => Ok(Side::Source),
        Some("d") => Ok(Side::Destination),
        _ => bail!("unknown field {field}"),
    }
}

fn proto(name: &str) -> anyhow::Result<Proto> {
    match name {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        _ => bail!("unknown protocol {name}"),
    }
}

fn number(text: &str) -> anyhow::Result<u32> {
    Ok(match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16)?,
        None => text.parse()?,
    })
}
