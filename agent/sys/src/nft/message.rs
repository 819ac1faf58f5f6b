//! Commands → netlink messages of nfnetlink's nf_tables subsystem.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, HookNumber, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::ast::{self, Base, Element, SetKind};
use super::command::Command;
use super::error::Error;
use super::lower::{self, octets};
use super::wire;

/// `NFNL_SUBSYS_NFTABLES`: the subsystem that a batch is addressed to.
const NFTABLES: u16 = 10;
/// `NFTNL_UDATA_SET_ELEM_COMMENT`, as `nft` tags it.
const COMMENT: u8 = 0;

/// The message and its flags. `id` must be unique in the transaction.
pub(super) fn command(command: &Command, id: u32) -> Result<(NetfilterMessage, u16), Error> {
    let (message, flags) = match command {
        Command::AddTable { table } => (NfTablesMessage::NewTable(self::table(table)), NLM_F_CREATE),
        Command::DeleteTable { table } => (NfTablesMessage::DeleteTable(self::table(table)), 0),
        Command::AddSet { table, set, kind } => {
            (NfTablesMessage::NewSet(new_set(table, set, *kind, id)), NLM_F_CREATE)
        }
        Command::AddElements { table, set, elements } => {
            (NfTablesMessage::NewSetElement(self::elements(table, set, elements)), NLM_F_CREATE)
        }
        Command::DeleteElement { table, set, address } => {
            let element = Element { address: *address, comment: None };
            (NfTablesMessage::DeleteSetElement(elements(table, set, &[element])), 0)
        }
        Command::AddChain { table, chain, base } => {
            (NfTablesMessage::NewChain(new_chain(table, chain, *base)), NLM_F_CREATE)
        }
        Command::AddRule { table, chain, rule } => {
            let list = lower::rule(rule).iter().map(wire::encode).collect::<Option<Vec<_>>>();
            let list = list.ok_or_else(|| Error::UnknownStatement { command: command.to_string() })?;
            let attributes = vec![
                RuleAttribute::Table(table.clone()),
                RuleAttribute::Chain(chain.clone()),
                RuleAttribute::Expressions(list),
            ];
            (NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND)
        }
        Command::DeleteRule { table, chain, handle } => {
            let mut attributes =
                vec![RuleAttribute::Table(table.clone()), RuleAttribute::Chain(chain.clone())];
            attributes.extend(handle.map(RuleAttribute::Handle));
            (NfTablesMessage::DeleteRule(RuleMessage { attributes }), 0)
        }
        Command::DeleteChain { table, chain } => {
            (NfTablesMessage::DeleteChain(new_chain(table, chain, None)), 0)
        }
    };
    Ok((inet(message), flags))
}

/// An nftables message about `inet` tables.
pub(super) fn inet(message: impl Into<NetfilterMessageInner>) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}

/// `NFNL_MSG_BATCH_BEGIN`
pub(super) fn begin() -> NetfilterMessage {
    control(ControlMessage::BatchBegin)
}

/// `NFNL_MSG_BATCH_END`: without it the kernel applies nothing.
pub(super) fn end() -> NetfilterMessage {
    control(ControlMessage::BatchEnd)
}

fn control(message: ControlMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES), message)
}

fn table(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] }
}

fn new_set(table: &str, set: &str, kind: SetKind, id: u32) -> SetMessage {
    let (key_type, key_len) = key(kind);
    SetMessage {
        attributes: vec![
            SetAttribute::Table(table.to_owned()),
            SetAttribute::Name(set.to_owned()),
            SetAttribute::Flags(SetFlags::empty()),
            SetAttribute::KeyType(key_type),
            SetAttribute::KeyLen(key_len),
            SetAttribute::Id(id),
        ],
    }
}

/// `nft`'s number of a key type, and the key's length in bytes. The kernel stores the number for `nft list` and
/// ignores it.
pub(super) fn key(kind: SetKind) -> (u32, u32) {
    match kind {
        SetKind::Ipv4Addr => (7, 4),
        SetKind::Ipv6Addr => (8, 16),
    }
}

fn elements(table: &str, set: &str, elements: &[Element]) -> SetElementMessage {
    let list = elements.iter().map(|element| {
        let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(octets(element.address)))];
        attributes.extend(element.comment.as_deref().and_then(tagged).map(SetElementAttribute::UserData));
        ListAttribute::Element(attributes)
    });
    SetElementMessage {
        attributes: vec![
            SetElementList::Table(table.to_owned()),
            SetElementList::Set(set.to_owned()),
            SetElementList::Elements(list.collect()),
        ],
    }
}

/// A comment in `nft`'s user data format: tag, length, text, zero.
fn tagged(comment: &str) -> Option<Vec<u8>> {
    let len = u8::try_from(comment.len() + 1).ok()?;
    Some([&[COMMENT, len], comment.as_bytes(), &[0]].concat())
}

/// The comment in an element's user data.
pub(super) fn comment(user_data: &[u8]) -> Option<String> {
    let mut rest = user_data;
    while let [tag, len, tail @ ..] = rest {
        let (value, next) = tail.split_at_checked(usize::from(*len))?;
        if *tag == COMMENT {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8(text.to_vec()).ok();
        }
        rest = next;
    }
    None
}

fn new_chain(table: &str, chain: &str, base: Option<Base>) -> ChainMessage {
    let mut attributes =
        vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.to_owned())];
    if let Some(base) = base {
        let kind = match base.kind {
            ast::ChainKind::Filter => "filter",
            ast::ChainKind::Nat => "nat",
            ast::ChainKind::Route => "route",
        };
        attributes.extend([
            ChainAttribute::Hook(vec![
                Hook::Number(HookNumber::Inet(hook(base.hook))),
                // The library types the attribute as unsigned; the kernel reads it as signed.
                Hook::Priority(u32::from_ne_bytes(base.priority.to_ne_bytes())),
            ]),
            ChainAttribute::Policy(u32::from(base.policy == ast::Policy::Accept)),
            ChainAttribute::Type(kind.to_owned()),
        ]);
    }
    ChainMessage { attributes }
}

fn hook(hook: ast::Hook) -> InetHookNumber {
    match hook {
        ast::Hook::Prerouting => InetHookNumber::PreRouting,
        ast::Hook::Input => InetHookNumber::LocalIn,
        ast::Hook::Forward => InetHookNumber::Forward,
        ast::Hook::Output => InetHookNumber::LocalOut,
        ast::Hook::Postrouting => InetHookNumber::PostRouting,
    }
}
