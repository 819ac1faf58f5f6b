//! Rule sets as values: tables, sets, chains, rules and statements, with the meaning they have in `nft`'s language.

use std::net::IpAddr;

use ipnet::IpNet;

use super::error::Error;

/// Longest comment of an element that `nft` stores in the kernel, without the terminating zero.
const MAX_COMMENT: usize = 127;

/// Tables with their sets, chains and rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// The tables.
    pub tables: Vec<Table>,
}

/// The address family of a table: which packets it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
}

/// A named group of sets and chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its address family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Sets that its rules may refer to.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// A list of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// The hook that it is attached to; `None` for a chain that is reached by jumps only.
    pub base: Option<Base>,
    /// The rules in order.
    pub rules: Vec<Rule>,
}

/// How a base chain is attached to the network stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Its type, which decides what its rules may do.
    pub kind: ChainKind,
    /// The hook at which it runs.
    pub hook: Hook,
    /// Order among the chains of the hook: lower runs first.
    pub priority: i32,
    /// The verdict for packets that reach its end.
    pub policy: Policy,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Accepts or drops packets, sets marks.
    Filter,
    /// Translates addresses; sees only the first packet of a connection.
    Nat,
    /// Sets marks on output; a packet whose mark changed is routed again.
    Route,
}

/// A hook of the network stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive, before routing.
    Prerouting,
    /// Packets that are delivered locally.
    Input,
    /// Packets that are forwarded.
    Forward,
    /// Packets that are sent locally.
    Output,
    /// Packets that leave, after routing.
    Postrouting,
}

/// The verdict of a base chain for packets that reach its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// They are accepted.
    Accept,
    /// They are dropped.
    Drop,
}

/// Statements that are evaluated in order until one does not match.
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
    /// The type of its elements.
    pub kind: SetKind,
    /// Its elements.
    pub elements: Vec<Element>,
}

/// The type of a set's elements.
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
    /// Shown by `nft list set`.
    pub comment: Option<String>,
}

/// Comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// `==`
    Eq,
    /// `!=`
    Ne,
}

/// Source or destination of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `saddr`, `sport`
    Source,
    /// `daddr`, `dport`
    Destination,
}

/// Input or output interface.
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

/// The right-hand side of an address comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// An address or a prefix.
    Net(IpNet),
    /// The addresses in a set of the same table.
    Set {
        /// The type of the set's elements, which selects the header.
        kind: SetKind,
        /// Its name.
        name: String,
    },
}

/// A statement of a rule. As in `nft`, a match implies its protocol: `ip saddr` matches no IPv6 packet, `tcp dport` no
/// UDP.
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
    /// `tcp flags & mask == value`
    TcpFlags {
        /// Flags that are compared.
        mask: u8,
        /// Comparison operator.
        op: Op,
        /// Those of them that are set.
        value: u8,
    },
    /// `meta protocol ip`, `meta protocol ip6`: as `meta nfproto`, in every family of tables.
    EtherType(SetKind),
    /// `meta mark & mask == value`
    Mark {
        /// Bits that are compared; all of them when there is no `&`.
        mask: u32,
        /// Comparison operator.
        op: Op,
        /// The value.
        value: u32,
    },
    /// `ct mark & mask == value`
    CtMark {
        /// Bits that are compared; all of them when there is no `&`.
        mask: u32,
        /// Comparison operator.
        op: Op,
        /// The value.
        value: u32,
    },
    /// `ct state established`: of a connection that has been answered.
    CtEstablished,
    /// `meta skuid 1000`: the user of the sending socket.
    SocketUid(Op, u32),
    /// `counter`
    Counter,
    /// `accept`, `drop`, `return`, `jump`
    Verdict(Verdict),
    /// `redirect to :15001`
    Redirect(u16),
    /// `snat ip to 10.0.0.1`
    Snat(IpAddr),
    /// `dnat ip to 10.0.0.1`
    Dnat(IpAddr),
    /// `ct mark set ct mark & keep | set`
    SetCtMark {
        /// Bits that keep their value.
        keep: u32,
        /// Bits that are set.
        set: u32,
    },
    /// `meta mark set ct mark`
    SetMarkFromCt,
    /// `ct zone set 1`
    SetCtZone(u16),
    /// `ct original zone set 1`: only what the sender of the first packet sends is looked up in the zone; answers are
    /// found without one.
    SetCtOriginalZone(u16),
    /// A statement of another program, as read from the kernel. It cannot be written.
    Unknown(String),
}

/// Ends or redirects the evaluation of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The packet passes this base chain.
    Accept,
    /// The packet is dropped.
    Drop,
    /// Continue in the chain that jumped here.
    Return,
    /// Continue in another chain, then here.
    Jump(String),
}

impl Ruleset {
    /// The canonical form, in which equivalent rule sets are equal: tables, sets, chains and elements sorted (their
    /// order has no meaning), rules without the protocol checks that later statements imply.
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

    /// Drops protocol checks that later statements imply: the kernel needs `meta l4proto tcp` before `tcp dport 53` and
    /// `meta nfproto ipv4` before `ip saddr`, `nft`'s language does not.
    pub(super) fn drop_implied(&mut self) {
        let all = std::mem::take(&mut self.statements);
        let implied = |at: usize, statement: &Statement| {
            all[at + 1..].iter().any(|later| match statement {
                Statement::L4Proto(proto) => match later {
                    Statement::Port(p, ..) => p == proto,
                    Statement::TcpFlags { .. } => *proto == Proto::Tcp,
                    _ => false,
                },
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
    /// The header that is matched.
    #[must_use]
    pub fn kind(&self) -> SetKind {
        match self {
            Self::Net(net) => SetKind::of(net.addr()),
            Self::Set { kind, .. } => *kind,
        }
    }
}

impl SetKind {
    /// The type of set that this address belongs to.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::Ipv4Addr } else { Self::Ipv6Addr }
    }
}

impl Proto {
    /// The protocol number in IP headers.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl Element {
    /// Checks the comment: its length field is one byte, and a longer one would be encoded as another.
    pub(super) fn checked(self) -> Result<Self, Error> {
        match &self.comment {
            Some(comment) if comment.len() > MAX_COMMENT || comment.contains('\0') => {
                Err(Error::Comment { address: self.address, comment: comment.clone(), max: MAX_COMMENT })
            }
            _ => Ok(self),
        }
    }
}
