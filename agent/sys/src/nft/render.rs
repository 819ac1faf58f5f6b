//! Displays rule sets and commands in `nft`'s syntax, for logs, errors and tests.

use std::fmt::{self, Display, Formatter};

use super::ast::{
    Base, Chain, ChainKind, Direction, Element, Hook, Match, Op, Policy, Proto, Rule, Ruleset, SetKind, Side,
    Statement, Verdict,
};
use super::command::{self, Command};

/// The commands that make this rule set, one per line.
impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match command::replace(self) {
            Ok(commands) => commands.iter().try_for_each(|command| writeln!(f, "{command}")),
            // A rule set with unknown statements, which was read from the kernel, has no commands: show its chains.
            Err(_) => {
                self.tables.iter().flat_map(|table| &table.chains).try_for_each(|chain| write!(f, "{chain}"))
            }
        }
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.rules.iter().try_for_each(|rule| writeln!(f, "{}: {rule}", self.name))
    }
}

impl Display for Command {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { table } => write!(f, "add table inet {table}"),
            Self::DeleteTable { table } => write!(f, "delete table inet {table}"),
            Self::AddSet { table, set, kind } => {
                write!(f, "add set inet {table} {set} {{ type {kind} ; }}")
            }
            Self::AddElements { table, set, elements } => {
                write!(f, "add element inet {table} {set} {{ ")?;
                for (at, element) in elements.iter().enumerate() {
                    write!(f, "{}{element}", if at == 0 { "" } else { ", " })?;
                }
                f.write_str(" }")
            }
            Self::DeleteElement { table, set, address } => {
                write!(f, "delete element inet {table} {set} {{ {address} }}")
            }
            Self::AddChain { table, chain, base: None } => write!(f, "add chain inet {table} {chain}"),
            Self::AddChain { table, chain, base: Some(base) } => {
                write!(f, "add chain inet {table} {chain} {{ {base} }}")
            }
            Self::AddRule { table, chain, rule } => write!(f, "add rule inet {table} {chain} {rule}"),
            Self::DeleteRule { table, chain, handle: Some(handle) } => {
                write!(f, "delete rule {table} {chain} handle {handle}")
            }
            Self::DeleteRule { table, chain, handle: None } => write!(f, "flush chain {table} {chain}"),
            Self::DeleteChain { table, chain } => write!(f, "delete chain {table} {chain}"),
        }
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        let policy = match self.policy {
            Policy::Accept => "",
            Policy::Drop => " policy drop ;",
        };
        write!(f, "type {kind} hook {hook} priority {} ;{policy}", self.priority)
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        self.comment.as_ref().map_or(Ok(()), |comment| write!(f, " comment \"{comment}\""))
    }
}

impl Display for SetKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4Addr => "ipv4_addr",
            Self::Ipv6Addr => "ipv6_addr",
        })
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (at, statement) in self.statements.iter().enumerate() {
            write!(f, "{}{statement}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(Direction::In, op, name) => write!(f, "iifname {op}{name}"),
            Self::Interface(Direction::Out, op, name) => write!(f, "oifname {op}{name}"),
            Self::NfProto(SetKind::Ipv4Addr) => f.write_str("meta nfproto ipv4"),
            Self::NfProto(SetKind::Ipv6Addr) => f.write_str("meta nfproto ipv6"),
            Self::L4Proto(proto) => write!(f, "meta l4proto {proto}"),
            Self::Address(side, op, to) => {
                let header = if to.kind() == SetKind::Ipv4Addr { "ip" } else { "ip6" };
                write!(f, "{header} {}addr {op}{to}", side.letter())
            }
            Self::Port(proto, side, op, port) => write!(f, "{proto} {}port {op}{port}", side.letter()),
            Self::TcpFlags { mask, op, value } => {
                write!(f, "tcp flags & {mask:#x} {} {value:#x}", if *op == Op::Eq { "==" } else { "!=" })
            }
            Self::EtherType(SetKind::Ipv4Addr) => f.write_str("meta protocol ip"),
            Self::EtherType(SetKind::Ipv6Addr) => f.write_str("meta protocol ip6"),
            Self::Mark { mask, op, value } => masked(f, "meta mark", *mask, *op, *value),
            Self::CtMark { mask, op, value } => masked(f, "ct mark", *mask, *op, *value),
            Self::CtEstablished => f.write_str("ct state established"),
            Self::SocketUid(op, uid) => write!(f, "meta skuid {op}{uid}"),
            Self::Counter => f.write_str("counter"),
            Self::Verdict(Verdict::Accept) => f.write_str("accept"),
            Self::Verdict(Verdict::Drop) => f.write_str("drop"),
            Self::Verdict(Verdict::Return) => f.write_str("return"),
            Self::Verdict(Verdict::Jump(chain)) => write!(f, "jump {chain}"),
            Self::Redirect(port) => write!(f, "redirect to :{port}"),
            Self::Snat(to) => write!(f, "snat {} to {to}", if to.is_ipv4() { "ip" } else { "ip6" }),
            Self::Dnat(to) => write!(f, "dnat {} to {to}", if to.is_ipv4() { "ip" } else { "ip6" }),
            Self::SetCtMark { keep, set } => write!(f, "ct mark set ct mark & {keep:#x} | {set:#x}"),
            Self::SetMarkFromCt => f.write_str("meta mark set ct mark"),
            Self::SetCtZone(zone) => write!(f, "ct zone set {zone}"),
            Self::SetCtOriginalZone(zone) => write!(f, "ct original zone set {zone}"),
            Self::Unknown(what) => write!(f, "<{what}>"),
        }
    }
}

fn masked(f: &mut Formatter<'_>, what: &str, mask: u32, op: Op, value: u32) -> fmt::Result {
    match mask {
        u32::MAX => write!(f, "{what} {op}{value:#x}"),
        _ => write!(f, "{what} & {mask:#x} {} {value:#x}", if op == Op::Eq { "==" } else { "!=" }),
    }
}

impl Side {
    fn letter(self) -> char {
        match self {
            Self::Source => 's',
            Self::Destination => 'd',
        }
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Ne { "!= " } else { "" })
    }
}

impl Display for Proto {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Tcp { "tcp" } else { "udp" })
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            Self::Net(net) => write!(f, "{net}"),
            Self::Set { name, .. } => write!(f, "@{name}"),
        }
    }
}
