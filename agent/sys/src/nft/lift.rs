//! Instructions → statements (decompiling): the inverse of `lower`. An instruction that has no statement becomes
//! [`Statement::Unknown`], so that a rule of another program never looks like one of this program.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ast::{Direction, Match, Op, Proto, Rule, SetKind, Side, Statement, Verdict};
use super::expr::{Expr, NAME_LEN, Source, ethertype, nfproto, verdict};
use super::lower::{ESTABLISHED, TCP_FLAGS, address_source, port_source};

/// Lifts a rule's instructions to statements.
pub(super) fn rule(instructions: &[Expr]) -> Rule {
    let mut lifting = Lifting::default();
    let mut rest = instructions;
    while let Some(first) = rest.first() {
        let (statement, used) =
            lifting.first(rest).unwrap_or_else(|| (Statement::Unknown(format!("{first:?}")), 1));
        lifting.note(&statement);
        lifting.out.push(statement);
        rest = &rest[used..];
    }
    let mut rule = Rule { statements: lifting.out };
    rule.drop_implied();
    rule
}

#[derive(Default)]
struct Lifting {
    out: Vec<Statement>,
    /// Protocols that the rule has checked so far: they decide what an offset in a header means.
    family: Option<SetKind>,
    proto: Option<Proto>,
}

impl Lifting {
    fn note(&mut self, statement: &Statement) {
        match statement {
            Statement::NfProto(kind) | Statement::EtherType(kind) => self.family = Some(*kind),
            Statement::L4Proto(proto) => self.proto = Some(*proto),
            _ => {}
        }
    }

    /// Lifts the first statement; returns it with the number of instructions that it takes.
    fn first(&self, rest: &[Expr]) -> Option<(Statement, usize)> {
        Some(match rest {
            [Expr::Load(source), Expr::Bitwise { mask, xor }, compared, ..]
                if matches!(compared, Expr::Equal(_) | Expr::NotEqual(_)) =>
            {
                let zero = xor.iter().all(|byte| *byte == 0);
                (self.compared(*source, Some(mask), compared).filter(|_| zero)?, 3)
            }
            [Expr::Load(source), compared @ (Expr::Equal(_) | Expr::NotEqual(_)), ..] => {
                (self.compared(*source, None, compared)?, 2)
            }
            [Expr::Load(source), Expr::Lookup { set, inverted }, ..] => {
                let (kind, side) = self.address_of(*source)?;
                let op = if *inverted { Op::Ne } else { Op::Eq };
                (Statement::Address(side, op, Match::Set { kind, name: set.clone() }), 2)
            }
            [Expr::Load(Source::CtMark), Expr::Bitwise { mask, xor }, Expr::Store(Source::CtMark), ..] => {
                (Statement::SetCtMark { keep: u32_of(mask)?, set: u32_of(xor)? }, 3)
            }
            [Expr::Load(Source::CtMark), Expr::Store(Source::Mark), ..] => (Statement::SetMarkFromCt, 2),
            [Expr::Immediate(zone), Expr::Store(target @ (Source::CtZone | Source::CtOriginalZone)), ..] => {
                let zone = u16::from_ne_bytes(zone.as_slice().try_into().ok()?);
                let both = *target == Source::CtZone;
                (if both { Statement::SetCtZone(zone) } else { Statement::SetCtOriginalZone(zone) }, 2)
            }
            [Expr::Immediate(port), Expr::Redirect, ..] => {
                (Statement::Redirect(u16::from_be_bytes(port.as_slice().try_into().ok()?)), 2)
            }
            [Expr::Immediate(to), Expr::Snat { family }, ..] => (Statement::Snat(of_family(to, *family)?), 2),
            [Expr::Immediate(to), Expr::Dnat { family }, ..] => (Statement::Dnat(of_family(to, *family)?), 2),
            [Expr::Counter, ..] => (Statement::Counter, 1),
            [Expr::Verdict { code, chain }, ..] => {
                (Statement::Verdict(lift_verdict(*code, chain.as_deref())?), 1)
            }
            _ => return None,
        })
    }

    fn compared(&self, source: Source, mask: Option<&[u8]>, compared: &Expr) -> Option<Statement> {
        let (op, data) = match compared {
            Expr::Equal(data) => (Op::Eq, data.as_slice()),
            Expr::NotEqual(data) => (Op::Ne, data.as_slice()),
            _ => return None,
        };
        let bits = mask.map_or(Some(u32::MAX), u32_of);
        let unmasked = mask.is_none();
        match source {
            Source::Mark => Some(Statement::Mark { mask: bits?, op, value: u32_of(data)? }),
            Source::CtMark => Some(Statement::CtMark { mask: bits?, op, value: u32_of(data)? }),
            Source::CtState if bits? == ESTABLISHED && op == Op::Ne && u32_of(data)? == 0 => {
                Some(Statement::CtEstablished)
            }
            Source::SocketUid if unmasked => Some(Statement::SocketUid(op, u32_of(data)?)),
            Source::InName if unmasked => Some(Statement::Interface(Direction::In, op, name(data)?)),
            Source::OutName if unmasked => Some(Statement::Interface(Direction::Out, op, name(data)?)),
            Source::NfProto if unmasked && op == Op::Eq => match data {
                [nfproto::IPV4] => Some(Statement::NfProto(SetKind::Ipv4Addr)),
                [nfproto::IPV6] => Some(Statement::NfProto(SetKind::Ipv6Addr)),
                _ => None,
            },
            Source::L4Proto if unmasked && op == Op::Eq => {
                let proto = [Proto::Tcp, Proto::Udp].into_iter().find(|proto| data == [proto.number()])?;
                Some(Statement::L4Proto(proto))
            }
            Source::EtherType if unmasked && op == Op::Eq => {
                let number = u16::from_be_bytes(data.try_into().ok()?);
                let kind = match number {
                    ethertype::IPV4 => SetKind::Ipv4Addr,
                    ethertype::IPV6 => SetKind::Ipv6Addr,
                    _ => return None,
                };
                Some(Statement::EtherType(kind))
            }
            TCP_FLAGS if self.proto == Some(Proto::Tcp) => match (mask?, data) {
                ([mask], [value]) => Some(Statement::TcpFlags { mask: *mask, op, value: *value }),
                _ => None,
            },
            Source::Network { .. } => {
                let (kind, side) = self.address_of(source)?;
                Some(Statement::Address(side, op, Match::Net(net(kind, data, mask)?)))
            }
            Source::Transport { .. } if unmasked => {
                let side =
                    [Side::Source, Side::Destination].into_iter().find(|s| port_source(*s) == source)?;
                let port = u16::from_be_bytes(data.try_into().ok()?);
                Some(Statement::Port(self.proto?, side, op, port))
            }
            _ => None,
        }
    }

    fn address_of(&self, source: Source) -> Option<(SetKind, Side)> {
        let kind = self.family?;
        let side =
            [Side::Source, Side::Destination].into_iter().find(|s| address_source(kind, *s) == source)?;
        Some((kind, side))
    }
}

fn lift_verdict(code: u32, chain: Option<&str>) -> Option<Verdict> {
    Some(match (code, chain) {
        (verdict::ACCEPT, None) => Verdict::Accept,
        (verdict::DROP, None) => Verdict::Drop,
        (verdict::RETURN, None) => Verdict::Return,
        (verdict::JUMP, Some(chain)) => Verdict::Jump(chain.to_owned()),
        _ => return None,
    })
}

fn of_family(to: &[u8], family: u32) -> Option<IpAddr> {
    let to = address(to)?;
    let fits = if to.is_ipv4() { nfproto::IPV4 } else { nfproto::IPV6 };
    (family == u32::from(fits)).then_some(to)
}

fn net(kind: SetKind, data: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let address = address(data).filter(|address| SetKind::of(*address) == kind)?;
    match mask {
        None => Some(IpNet::from(address)),
        Some(mask) => IpNet::with_netmask(address, self::address(mask)?).ok(),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// Marks and user IDs are in host byte order.
fn u32_of(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_ne_bytes)
}

/// A complete interface name. A comparison of fewer bytes is a wildcard (`eth*`), which has no statement here.
fn name(data: &[u8]) -> Option<String> {
    let end = data.iter().position(|byte| *byte == 0).filter(|_| data.len() == NAME_LEN)?;
    data[end..].iter().all(|byte| *byte == 0).then(|| String::from_utf8(data[..end].to_vec()).ok()).flatten()
}
