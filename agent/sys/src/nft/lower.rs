//! Statements → instructions (compiling). The protocol checks that statements imply are emitted once per rule.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ast::{Direction, Match, Op, Proto, Rule, SetKind, Side, Statement, Verdict};
use super::expr::{Expr, NAME_LEN, Source, ethertype, nfproto, verdict};

/// Lowers a rule to instructions.
pub(super) fn rule(rule: &Rule) -> Vec<Expr> {
    let mut lowering = Lowering::default();
    rule.statements.iter().for_each(|statement| lowering.statement(statement));
    lowering.out
}

#[derive(Default)]
struct Lowering {
    out: Vec<Expr>,
    /// Protocols that the rule has checked already.
    family: Option<SetKind>,
    proto: Option<Proto>,
}

impl Lowering {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Interface(direction, op, name) => self.interface(*direction, *op, name),
            Statement::NfProto(kind) => self.family(*kind),
            Statement::L4Proto(proto) => self.proto(*proto),
            Statement::Address(side, op, to) => self.address(*side, *op, to),
            Statement::Port(proto, side, op, port) => self.port(*proto, *side, *op, *port),
            Statement::TcpFlags { mask, op, value } => {
                self.proto(Proto::Tcp);
                let masked = Expr::Bitwise { mask: vec![*mask], xor: vec![0] };
                self.out.extend([Expr::Load(TCP_FLAGS), masked, compare(*op, vec![*value])]);
            }
            Statement::EtherType(kind) => {
                // Implies what `meta nfproto` would say, which tables of a bridge cannot.
                self.family = Some(*kind);
                let number = match kind {
                    SetKind::Ipv4Addr => ethertype::IPV4,
                    SetKind::Ipv6Addr => ethertype::IPV6,
                };
                self.out.extend([Expr::Load(Source::EtherType), Expr::Equal(number.to_be_bytes().into())]);
            }
            Statement::Mark { mask, op, value } => self.masked(Source::Mark, *mask, *op, *value),
            Statement::CtMark { mask, op, value } => self.masked(Source::CtMark, *mask, *op, *value),
            Statement::CtEstablished => {
                let masked = Expr::Bitwise { mask: ESTABLISHED.to_ne_bytes().into(), xor: vec![0; 4] };
                self.out.extend([Expr::Load(Source::CtState), masked, Expr::NotEqual(vec![0; 4])]);
            }
            Statement::SocketUid(op, uid) => self.masked(Source::SocketUid, u32::MAX, *op, *uid),
            Statement::Counter => self.out.push(Expr::Counter),
            Statement::Verdict(verdict) => self.out.push(lower_verdict(verdict)),
            Statement::Redirect(port) => {
                self.out.extend([Expr::Immediate(port.to_be_bytes().into()), Expr::Redirect]);
            }
            Statement::Snat(to) => self.translate(*to, |family| Expr::Snat { family }),
            Statement::Dnat(to) => self.translate(*to, |family| Expr::Dnat { family }),
            Statement::SetCtMark { keep, set } => {
                // The machine computes `x & mask ^ xor`. For bits in `set`, clearing before the xor makes it an or.
                let (mask, xor) = (keep & !set, *set);
                self.out.extend([
                    Expr::Load(Source::CtMark),
                    Expr::Bitwise { mask: mask.to_ne_bytes().into(), xor: xor.to_ne_bytes().into() },
                    Expr::Store(Source::CtMark),
                ]);
            }
            Statement::SetMarkFromCt => {
                self.out.extend([Expr::Load(Source::CtMark), Expr::Store(Source::Mark)]);
            }
            Statement::SetCtZone(zone) => self.zone(*zone, Source::CtZone),
            Statement::SetCtOriginalZone(zone) => self.zone(*zone, Source::CtOriginalZone),
            Statement::Unknown(what) => self.out.push(Expr::Other(what.clone())),
        }
    }

    fn family(&mut self, kind: SetKind) {
        if self.family.replace(kind) != Some(kind) {
            let number = match kind {
                SetKind::Ipv4Addr => nfproto::IPV4,
                SetKind::Ipv6Addr => nfproto::IPV6,
            };
            self.out.extend([Expr::Load(Source::NfProto), Expr::Equal(vec![number])]);
        }
    }

    fn proto(&mut self, proto: Proto) {
        if self.proto.replace(proto) != Some(proto) {
            self.out.extend([Expr::Load(Source::L4Proto), Expr::Equal(vec![proto.number()])]);
        }
    }

    fn interface(&mut self, direction: Direction, op: Op, name: &str) {
        let source = match direction {
            Direction::In => Source::InName,
            Direction::Out => Source::OutName,
        };
        let mut padded = name.as_bytes().to_vec();
        padded.resize(NAME_LEN.max(padded.len()), 0);
        self.out.extend([Expr::Load(source), compare(op, padded)]);
    }

    fn address(&mut self, side: Side, op: Op, to: &Match) {
        self.family(to.kind());
        self.out.push(Expr::Load(address_source(to.kind(), side)));
        match to {
            Match::Net(net) => {
                if net.prefix_len() < net.max_prefix_len() {
                    let zero = octets(unspecified(net));
                    self.out.push(Expr::Bitwise { mask: octets(net.netmask()), xor: zero });
                }
                self.out.push(compare(op, octets(net.network())));
            }
            Match::Set { name, .. } => {
                self.out.push(Expr::Lookup { set: name.clone(), inverted: op == Op::Ne });
            }
        }
    }

    fn port(&mut self, proto: Proto, side: Side, op: Op, port: u16) {
        self.proto(proto);
        self.out.extend([Expr::Load(port_source(side)), compare(op, port.to_be_bytes().into())]);
    }

    fn masked(&mut self, source: Source, mask: u32, op: Op, value: u32) {
        self.out.push(Expr::Load(source));
        if mask != u32::MAX {
            self.out.push(Expr::Bitwise { mask: mask.to_ne_bytes().into(), xor: vec![0; 4] });
        }
        self.out.push(compare(op, value.to_ne_bytes().into()));
    }

    fn translate(&mut self, to: IpAddr, expr: fn(u32) -> Expr) {
        let family = if to.is_ipv4() { nfproto::IPV4 } else { nfproto::IPV6 };
        self.out.extend([Expr::Immediate(octets(to)), expr(family.into())]);
    }

    fn zone(&mut self, zone: u16, target: Source) {
        self.out.extend([Expr::Immediate(zone.to_ne_bytes().into()), Expr::Store(target)]);
    }
}

/// The bit of `established` in a connection's state.
pub(super) const ESTABLISHED: u32 = 1 << 1;

/// The byte of the flags in a TCP header.
pub(super) const TCP_FLAGS: Source = Source::Transport { offset: 13, len: 1 };

/// Offset and length of an address in its header.
pub(super) fn address_source(kind: SetKind, side: Side) -> Source {
    let (offset, len) = match (kind, side) {
        (SetKind::Ipv4Addr, Side::Source) => (12, 4),
        (SetKind::Ipv4Addr, Side::Destination) => (16, 4),
        (SetKind::Ipv6Addr, Side::Source) => (8, 16),
        (SetKind::Ipv6Addr, Side::Destination) => (24, 16),
    };
    Source::Network { offset, len }
}

/// Offset and length of a port in a TCP or UDP header.
pub(super) fn port_source(side: Side) -> Source {
    let offset = if side == Side::Source { 0 } else { 2 };
    Source::Transport { offset, len: 2 }
}

fn compare(op: Op, data: Vec<u8>) -> Expr {
    match op {
        Op::Eq => Expr::Equal(data),
        Op::Ne => Expr::NotEqual(data),
    }
}

fn lower_verdict(verdict: &Verdict) -> Expr {
    let (code, chain) = match verdict {
        Verdict::Accept => (verdict::ACCEPT, None),
        Verdict::Drop => (verdict::DROP, None),
        Verdict::Return => (verdict::RETURN, None),
        Verdict::Jump(chain) => (verdict::JUMP, Some(chain.clone())),
    };
    Expr::Verdict { code, chain }
}

fn unspecified(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpNet::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// An address in network byte order.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}
