//! Instructions ⇄ netlink expressions. The netlink library has types for some of them; the others are encoded by the
//! attribute numbers of the kernel's `linux/netfilter/nf_tables.h`, whose names stand beside each.

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute, Lookup, Meta,
    MetaKey, Operator, Payload, Register, VerdictAttribute,
};

use super::expr::{Expr, Source};

const REG: Register = Register::Reg1;

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`
mod base {
    pub(super) const NETWORK: u32 = 1;
    pub(super) const TRANSPORT: u32 = 2;
}

/// `NFTA_CT_*` and `NFT_CT_*`
mod ct {
    pub(super) const DREG: u16 = 1;
    pub(super) const KEY: u16 = 2;
    pub(super) const DIRECTION: u16 = 3;
    pub(super) const SREG: u16 = 4;
    pub(super) const STATE: u32 = 0;
    pub(super) const MARK: u32 = 3;
    pub(super) const ZONE: u32 = 17;
    /// `IP_CT_DIR_ORIGINAL`
    pub(super) const ORIGINAL: u8 = 0;
}

/// `NFTA_REDIR_*`; the flag is `NF_NAT_RANGE_PROTO_SPECIFIED`.
mod redir {
    pub(super) const PORT_REG: u16 = 1;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const PORT_GIVEN: u32 = 2;
}

/// `NFTA_NAT_*` and `NFT_NAT_*`
mod nat {
    pub(super) const TYPE: u16 = 1;
    pub(super) const FAMILY: u16 = 2;
    pub(super) const ADDR_REG: u16 = 3;
    pub(super) const PORT_REG: u16 = 5;
    pub(super) const SNAT: u32 = 0;
    pub(super) const DNAT: u32 = 1;
}

/// The value of the first attribute of a variant.
macro_rules! find {
    ($attributes:expr, $variant:path) => {
        $attributes.iter().find_map(|attribute| match attribute {
            $variant(value) => Some(value),
            _ => None,
        })
    };
}
pub(super) use find;

/// Encodes an instruction; `None` for [`Expr::Other`].
pub(super) fn encode(expr: &Expr) -> Option<ListAttribute<ExpressionAttribute>> {
    let value = |bytes: &[u8]| DataAttribute::Value(bytes.to_vec());
    let compare = |op, data: &[u8]| {
        Expressions::Cmp(vec![Cmp::SourceRegister(REG), Cmp::Op(op), Cmp::Data(value(data))])
    };
    let expressions = match expr {
        Expr::Load(source) => load(*source),
        Expr::Store(source) => store(*source)?,
        Expr::Immediate(data) => {
            Expressions::Immediate(vec![Immediate::DestinationRegister(REG), Immediate::Data(value(data))])
        }
        Expr::Bitwise { mask, xor } => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REG),
            Bitwise::DestinationRegister(REG),
            Bitwise::Length(u32::try_from(mask.len()).ok()?),
            Bitwise::Mask(value(mask)),
            Bitwise::Xor(value(xor)),
        ]),
        Expr::Equal(data) => compare(Operator::Equal, data),
        Expr::NotEqual(data) => compare(Operator::NotEqual, data),
        Expr::Lookup { set, inverted } => Expressions::Lookup(vec![
            Lookup::Set(set.clone()),
            Lookup::SourceRegister(REG),
            Lookup::Flags(u32::from(*inverted)),
        ]),
        Expr::Counter => other("counter", &[]),
        Expr::Verdict { code, chain } => {
            let mut verdict = vec![VerdictAttribute::Code((*code).into())];
            verdict.extend(chain.clone().map(VerdictAttribute::Chain));
            let data = Immediate::Data(DataAttribute::Verdict(verdict));
            Expressions::Immediate(vec![Immediate::DestinationRegister(Register::Verdict), data])
        }
        Expr::Redirect => other("redir", &[(redir::PORT_REG, reg()), (redir::FLAGS, redir::PORT_GIVEN)]),
        Expr::Snat { family } => translate(nat::SNAT, *family),
        Expr::Dnat { family } => translate(nat::DNAT, *family),
        Expr::Other(_) => return None,
    };
    Some(expressions.into())
}

fn translate(kind: u32, family: u32) -> Expressions {
    other("nat", &[(nat::TYPE, kind), (nat::FAMILY, family), (nat::ADDR_REG, reg())])
}

fn load(source: Source) -> Expressions {
    let meta = |key| Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(REG)]);
    let ct = |key| other("ct", &[(ct::DREG, reg()), (ct::KEY, key)]);
    let payload = |base, offset, len| {
        Expressions::Payload(vec![
            Payload::DestinationRegister(REG),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(len),
        ])
    };
    match source {
        Source::Mark => meta(MetaKey::Mark),
        Source::InName => meta(MetaKey::Iifname),
        Source::OutName => meta(MetaKey::Oifname),
        Source::SocketUid => meta(MetaKey::SocketUserId),
        Source::NfProto => meta(MetaKey::Nfproto),
        Source::EtherType => meta(MetaKey::EtherTypeProtocol),
        Source::L4Proto => meta(MetaKey::L4Proto),
        Source::CtState => ct(ct::STATE),
        Source::CtMark => ct(ct::MARK),
        // Loaded by no rule of this program: a direction is given when a zone is set.
        Source::CtZone | Source::CtOriginalZone => ct(ct::ZONE),
        Source::Network { offset, len } => payload(base::NETWORK, offset, len),
        Source::Transport { offset, len } => payload(base::TRANSPORT, offset, len),
    }
}

fn store(target: Source) -> Option<Expressions> {
    let ct = |key| other("ct", &[(ct::KEY, key), (ct::SREG, reg())]);
    match target {
        Source::Mark => Some(Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(REG)])),
        Source::CtMark => Some(ct(ct::MARK)),
        Source::CtZone => Some(ct(ct::ZONE)),
        Source::CtOriginalZone => Some(with_byte(ct(ct::ZONE), ct::DIRECTION, ct::ORIGINAL)),
        _ => None,
    }
}

/// Adds an attribute of one byte.
fn with_byte(expressions: Expressions, kind: u16, value: u8) -> Expressions {
    match expressions {
        Expressions::Other { expression_type, mut attributes } => {
            attributes.push(DefaultNla::new(kind, vec![value]));
            Expressions::Other { expression_type, attributes }
        }
        typed => typed,
    }
}

fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attributes =
        attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.to_be_bytes().into())).collect();
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

fn reg() -> u32 {
    REG.into()
}

/// Decodes an element of a rule's expression list; [`Expr::Other`] when it is not understood.
pub(super) fn decode(element: &ListAttribute<ExpressionAttribute>) -> Expr {
    let ListAttribute::Element(attributes) = element else { return Expr::Other(format!("{element:?}")) };
    let Some(expressions) = find!(attributes, ExpressionAttribute::Data) else {
        return Expr::Other(format!("{attributes:?}"));
    };
    known(expressions).unwrap_or_else(|| Expr::Other(format!("{expressions:?}")))
}

fn known(expressions: &Expressions) -> Option<Expr> {
    match expressions {
        Expressions::Meta(attributes) => meta(attributes),
        Expressions::Payload(attributes) => payload(attributes),
        Expressions::Immediate(attributes) => immediate(attributes),
        Expressions::Bitwise(attributes) => {
            let ours = *find!(attributes, Bitwise::SourceRegister)? == REG
                && *find!(attributes, Bitwise::DestinationRegister)? == REG
                && find!(attributes, Bitwise::Op).is_none_or(|op| *op == 0);
            let (mask, xor) = (find!(attributes, Bitwise::Mask)?, find!(attributes, Bitwise::Xor)?);
            ours.then_some(Expr::Bitwise { mask: bytes(mask)?, xor: bytes(xor)? })
        }
        Expressions::Cmp(attributes) => {
            let data = bytes(find!(attributes, Cmp::Data)?)?;
            match (find!(attributes, Cmp::Op)?, *find!(attributes, Cmp::SourceRegister)? == REG) {
                (Operator::Equal, true) => Some(Expr::Equal(data)),
                (Operator::NotEqual, true) => Some(Expr::NotEqual(data)),
                _ => None,
            }
        }
        Expressions::Lookup(attributes) => {
            let ours = *find!(attributes, Lookup::SourceRegister)? == REG
                && find!(attributes, Lookup::DestinationRegister).is_none();
            let inverted = find!(attributes, Lookup::Flags).is_some_and(|flags| flags & 1 == 1);
            ours.then_some(Expr::Lookup { set: find!(attributes, Lookup::Set)?.clone(), inverted })
        }
        Expressions::Other { expression_type, attributes } => {
            let get = |kind: u16| attributes.iter().find(|nla| nla.kind() == kind).and_then(be32);
            match expression_type.as_str() {
                "counter" => Some(Expr::Counter),
                "ct" => {
                    let direction = attributes.iter().find(|nla| nla.kind() == ct::DIRECTION).and_then(byte);
                    conntrack(get(ct::KEY)?, direction, get(ct::DREG), get(ct::SREG))
                }
                "redir" => (get(redir::PORT_REG)? == reg()).then_some(Expr::Redirect),
                "nat" => {
                    let (kind, family) = (get(nat::TYPE)?, get(nat::FAMILY)?);
                    match (get(nat::ADDR_REG)? == reg() && get(nat::PORT_REG).is_none(), kind) {
                        (true, nat::SNAT) => Some(Expr::Snat { family }),
                        (true, nat::DNAT) => Some(Expr::Dnat { family }),
                        _ => None,
                    }
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn meta(attributes: &[Meta]) -> Option<Expr> {
    let source = match find!(attributes, Meta::Key)? {
        MetaKey::Mark => Source::Mark,
        MetaKey::Iifname => Source::InName,
        MetaKey::Oifname => Source::OutName,
        MetaKey::SocketUserId => Source::SocketUid,
        MetaKey::Nfproto => Source::NfProto,
        MetaKey::EtherTypeProtocol => Source::EtherType,
        MetaKey::L4Proto => Source::L4Proto,
        _ => return None,
    };
    match (find!(attributes, Meta::DestinationRegister), find!(attributes, Meta::SourceRegister)) {
        (Some(to), None) => (*to == REG).then_some(Expr::Load(source)),
        (None, Some(from)) => (*from == REG).then_some(Expr::Store(source)),
        _ => None,
    }
}

fn payload(attributes: &[Payload]) -> Option<Expr> {
    let ours = *find!(attributes, Payload::DestinationRegister)? == REG;
    let (offset, len) = (*find!(attributes, Payload::Offset)?, *find!(attributes, Payload::Len)?);
    let source = match *find!(attributes, Payload::Base)? {
        base::NETWORK => Source::Network { offset, len },
        base::TRANSPORT => Source::Transport { offset, len },
        _ => return None,
    };
    ours.then_some(Expr::Load(source))
}

fn immediate(attributes: &[Immediate]) -> Option<Expr> {
    let register = *find!(attributes, Immediate::DestinationRegister)?;
    match find!(attributes, Immediate::Data)? {
        DataAttribute::Value(value) if register == REG => Some(Expr::Immediate(value.clone())),
        DataAttribute::Verdict(verdict) if register == Register::Verdict => Some(Expr::Verdict {
            code: (*find!(verdict, VerdictAttribute::Code)?).into(),
            chain: find!(verdict, VerdictAttribute::Chain).cloned(),
        }),
        _ => None,
    }
}

fn conntrack(key: u32, direction: Option<u8>, to: Option<u32>, from: Option<u32>) -> Option<Expr> {
    let source = match key {
        ct::STATE => Source::CtState,
        ct::MARK => Source::CtMark,
        // A zone of both directions is dumped with a direction that does not exist.
        ct::ZONE if direction == Some(ct::ORIGINAL) => Source::CtOriginalZone,
        ct::ZONE => Source::CtZone,
        _ => return None,
    };
    match (to, from) {
        (Some(to), None) => (to == reg()).then_some(Expr::Load(source)),
        (None, Some(from)) => (from == reg()).then_some(Expr::Store(source)),
        _ => None,
    }
}

fn bytes(data: &DataAttribute) -> Option<Vec<u8>> {
    match data {
        DataAttribute::Value(value) => Some(value.clone()),
        _ => None,
    }
}

fn be32(nla: &DefaultNla) -> Option<u32> {
    value(nla).try_into().ok().map(u32::from_be_bytes)
}

fn byte(nla: &DefaultNla) -> Option<u8> {
    value(nla).first().copied()
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    value
}
