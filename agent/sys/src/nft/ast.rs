//! Rule sets as people write them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Error;

/// The longest comment the kernel stores for an element, without its final zero.
const MAX_COMMENT: usize = 127;

/// Tables with all that is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables.
    pub tables: Vec<Table>,
}

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
}

/// A named group of sets and chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Sets that its rules may look into.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A list of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it; `None` when only other chains jump to it.
    pub base: Option<Base>,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What its rules may do.
    pub kind: ChainKind,
    /// When it runs.
    pub hook: Hook,
    /// Before which others: lower runs first.
    pub priority: i32,
    /// What happens to packets that no rule decides about.
    pub policy: Policy,
}

/// What the rules of a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Pass or drop packets, set marks.
    Filter,
    /// Translate addresses; sees the first packet of a connection.
    Nat,
    /// Set marks; a changed packet is routed anew.
    Route,
}

/// When a base chain runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// On arrival.
    Prerouting,
    /// Before delivery to this host.
    Input,
    /// While passing through.
    Forward,
    /// When sent by this host.
    Output,
    /// Before leaving.
    Postrouting,
}

/// The fate of packets that no rule decides about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They pass.
    Accept,
    /// They are dropped.
    Drop,
}

/// Statements that run in order until one does not match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The statements.
    pub statements: Vec<Statement>,
}

/// A set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: SetKind,
    /// What is in it.
    pub elements: Vec<Element>,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKind {
    /// IPv4 addresses.
    Ipv4Addr,
    /// IPv6 addresses.
    Ipv6Addr,
}

/// One address of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    /// The address.
    pub address: IpAddr,
    /// A note for whoever lists the set.
    pub comment: Option<String>,
}

/// Equal to, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `==`
    Eq,
    /// `!=`
    Ne,
}

/// Which end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The sender.
    Source,
    /// The receiver.
    Destination,
}

/// Which way through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// `iifname`
    In,
    /// `oifname`
    Out,
}

/// Protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proto {
    /// 6
    Tcp,
    /// 17
    Udp,
}

/// What an address is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// An address or a range of them.
    Net(IpNet),
    /// The addresses in a set of the same table.
    Set {
        /// What the set holds: it says which header is looked at.
        kind: SetKind,
        /// Its name.
        name: String,
    },
}

/// One statement of a rule. Headers are checked for being there: `ip saddr` matches no IPv6 packet, `tcp dport` no UDP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// `iifname lo`, `oifname != lo`
    Interface(Direction, Op, String),
    /// `meta nfproto ipv4`, `meta nfproto ipv6`
    NfProto(SetKind),
    /// `meta l4proto tcp`
    L4Proto(Proto),
    /// `ip saddr 10.0.0.1`, `ip6 daddr != ::1`, `ip daddr @set`
    Address(Side, Op, Match),
    /// `tcp dport 53`
    Port(Proto, Side, Op, u16),
    /// `meta mark & mask == value`
    Mark {
        /// Bits that count; all of them when there is no `&`.
        mask: u32,
        /// Equal to, or not.
        op: Op,
        /// The bits.
        value: u32,
    },
    /// `ct mark & mask == value`
    CtMark {
        /// Bits that count; all of them when there is no `&`.
        mask: u32,
        /// Equal to, or not.
        op: Op,
        /// The bits.
        value: u32,
    },
    /// `meta skuid 1000`: sent by a socket of this user.
    SocketUid(Op, u32),
    /// `counter`
    Counter,
    /// What happens to the packet.
    Verdict(Verdict),
    /// `redirect to :15001`
    Redirect(u16),
    /// `snat ip to 10.0.0.1`
    Snat(IpAddr),
    /// `ct mark set ct mark & keep | set`
    SetCtMark {
        /// Bits that stay.
        keep: u32,
        /// Bits that are set.
        set: u32,
    },
    /// `meta mark set ct mark`
    SetMarkFromCt,
    /// `ct zone set 1`
    SetCtZone(u16),
    /// Something that this program does not write, as found in the kernel. It cannot be applied.
    Unknown(String),
}

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It passes this base chain.
    Accept,
    /// It is gone.
    Drop,
    /// On with the chain that jumped here.
    Return,
    /// On with another chain, then back.
    Jump(String),
}

impl Ruleset {
    /// The same rules in the one form that equal rule sets share: tables, sets, chains and elements sorted by name
    /// (order means nothing there), rules without the checks that later statements imply.
    #[must_use]
    pub fn canonical(mut self) -> Self {
        self.tables.sort_by(|a, b| (a.family, &a.name).cmp(&(b.family, &b.name)));
        for table in &mut self.tables {
            table.sets.sort_by(|a, b| a.name.cmp(&b.name));
            table.sets.iter_mut().for_each(|set| set.elements.sort());
            table.chains.sort_by(|a, b| a.name.cmp(&b.name));
            let rules = table.chains.iter_mut().flat_map(|chain| &mut chain.rules);
            rules.for_each(Rule::drop_implied);
        }
        self
    }

    /// The table of that name.
    #[must_use]
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.name == name)
    }
}

impl Rule {
    /// A rule of these statements.
    #[must_use]
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self { statements: statements.into() }
    }

    /// `tcp dport 53` says `meta l4proto tcp` and `ip saddr` says `meta nfproto ipv4`: the kernel needs both spelled
    /// out, people do not.
    pub(super) fn drop_implied(&mut self) {
        let all = std::mem::take(&mut self.statements);
        let implied = |at: usize, statement: &Statement| {
            all[at + 1..].iter().any(|later| match statement {
                Statement::L4Proto(proto) => matches!(later, Statement::Port(p, ..) if p == proto),
                Statement::NfProto(kind) => {
                    matches!(later, Statement::Address(_, _, to) if to.kind() == *kind)
                }
                _ => false,
            })
        };
        let kept = all.iter().enumerate().filter(|(at, statement)| !implied(*at, statement));
        self.statements = kept.map(|(_, statement)| statement.clone()).collect();
    }
}

impl Match {
    /// Which header is looked at.
    #[must_use]
    pub fn kind(&self) -> SetKind {
        match self {
            Self::Net(net) => SetKind::of(net.addr()),
            Self::Set { kind, .. } => *kind,
        }
    }
}

impl SetKind {
    /// What a set must hold to hold this address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4Addr } else { Self::Ipv6Addr }
    }
}

impl Proto {
    /// Its number in IP headers.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl Element {
    /// The kernel cuts nothing off: what does not fit is refused here, by name.
    pub(super) fn checked(self) -> Result<Self, Error> {
        match &self.comment {
            Some(comment) if comment.len() > MAX_COMMENT || comment.contains('\0') => {
                Err(Error::Invalid(format!(
                    "element {}: comment {comment:?} is longer than {MAX_COMMENT} bytes or has a zero byte",
                    self.address
                )))
            }
            _ => Ok(self),
        }
    }
}
