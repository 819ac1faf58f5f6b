//! Lists the kernel's tables, sets, chains and rules, and lifts them to a rule set.

use std::io;
use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, ListAttribute, NfTablesMessage, RuleAttribute,
    RuleMessage, SetAttribute, SetElementAttribute, SetElementList, SetElementMessage, SetMessage,
    TableAttribute, TableMessage,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::ast::{self, Base, Chain, ChainKind, Element, Family, Policy, Rule, Ruleset, Set, SetKind, Table};
use super::error::Error;
use super::wire::find;
use super::{lift, message, wire};
use crate::netlink::Netlink;
use crate::netns::Netns;

/// All tables of a family.
pub(super) fn ruleset(netns: &Netns, family: NetfilterProtoFamily) -> Result<Ruleset, Error> {
    let reader = Reader::open(netns, family)?;
    let mut ruleset = Ruleset::default();
    for found in reader.list("tables", NfTablesMessage::GetTable(TableMessage { attributes: vec![] }))? {
        let NfTablesMessage::NewTable(found) = found else { continue };
        let Some(name) = find!(found.attributes, TableAttribute::Name).cloned() else { continue };
        ruleset.tables.push(Table { family: Family::Inet, name, sets: vec![], chains: vec![] });
    }
    reader.sets(&mut ruleset)?;
    reader.chains(&mut ruleset)?;
    reader.rules(&mut ruleset)?;
    Ok(ruleset.canonical())
}

/// Lists what the kernel has of one family.
pub(super) struct Reader<'a> {
    netlink: Netlink,
    netns: &'a Netns,
    family: NetfilterProtoFamily,
}

impl<'a> Reader<'a> {
    pub(super) fn open(netns: &'a Netns, family: NetfilterProtoFamily) -> Result<Self, Error> {
        Ok(Self { netlink: Netlink::open(netns, NETLINK_NETFILTER)?, netns, family })
    }

    pub(super) fn list(&self, what: &str, request: NfTablesMessage) -> Result<Vec<NfTablesMessage>, Error> {
        let failed = |cause| Error::List { what: format!("{what} in {}", self.netns.id()), cause };
        let mut request = message::inet(request);
        request.header.family = self.family;
        let found = self.netlink.dump::<NetfilterMessage>(request).map_err(failed)?;
        let tables = found.into_iter().filter_map(|message| match message.inner {
            NetfilterMessageInner::NfTables(message) => Some(message),
            _ => None,
        });
        Ok(tables.collect())
    }

    fn sets(&self, ruleset: &mut Ruleset) -> Result<(), Error> {
        for found in self.list("sets", NfTablesMessage::GetSet(SetMessage { attributes: vec![] }))? {
            let NfTablesMessage::NewSet(found) = found else { continue };
            let names =
                find!(found.attributes, SetAttribute::Table).zip(find!(found.attributes, SetAttribute::Name));
            let Some((table, name)) = names else { continue };
            // Sets with other keys (ports, intervals, maps) belong to other programs.
            let Some(kind) = [SetKind::Ipv4Addr, SetKind::Ipv6Addr]
                .into_iter()
                .find(|kind| find!(found.attributes, SetAttribute::KeyType) == Some(&message::key(*kind).0))
            else {
                continue;
            };
            let elements = self.elements(table, name)?;
            if let Some(table) = ruleset.tables.iter_mut().find(|t| t.name == *table) {
                table.sets.push(Set { name: name.clone(), kind, elements });
            }
        }
        Ok(())
    }

    fn elements(&self, table: &str, set: &str) -> Result<Vec<Element>, Error> {
        let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(set.to_owned())];
        let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let mut elements = Vec::new();
        for found in self.list(&format!("elements of {set}"), request)? {
            let NfTablesMessage::NewSetElement(found) = found else { continue };
            let lists = found.attributes.iter().filter_map(|attribute| match attribute {
                SetElementList::Elements(list) => Some(list),
                _ => None,
            });
            elements.extend(lists.flatten().filter_map(element));
        }
        Ok(elements)
    }

    fn chains(&self, ruleset: &mut Ruleset) -> Result<(), Error> {
        for found in self.list("chains", NfTablesMessage::GetChain(ChainMessage { attributes: vec![] }))? {
            let NfTablesMessage::NewChain(found) = found else { continue };
            let attributes = &found.attributes;
            let names = find!(attributes, ChainAttribute::Table).zip(find!(attributes, ChainAttribute::Name));
            let Some((table, name)) = names else { continue };
            let base = match find!(attributes, ChainAttribute::Hook) {
                None => None,
                Some(hooks) => Some(base(attributes, hooks).ok_or_else(|| Error::List {
                    what: format!("chain {table} {name}"),
                    cause: io::Error::new(io::ErrorKind::InvalidData, format!("unknown hook {hooks:?}")),
                })?),
            };
            if let Some(table) = ruleset.tables.iter_mut().find(|t| t.name == *table) {
                table.chains.push(Chain { name: name.clone(), base, rules: vec![] });
            }
        }
        Ok(())
    }

    fn rules(&self, ruleset: &mut Ruleset) -> Result<(), Error> {
        for found in self.list("rules", NfTablesMessage::GetRule(RuleMessage { attributes: vec![] }))? {
            let NfTablesMessage::NewRule(found) = found else { continue };
            let attributes = &found.attributes;
            let names = find!(attributes, RuleAttribute::Table).zip(find!(attributes, RuleAttribute::Chain));
            let Some((table, chain)) = names else { continue };
            let rule = find!(attributes, RuleAttribute::Expressions).map_or_else(Rule::default, |list| {
                lift::rule(&list.iter().map(wire::decode).collect::<Vec<_>>())
            });
            let tables = ruleset.tables.iter_mut().filter(|t| t.name == *table);
            if let Some(chain) = tables.flat_map(|t| &mut t.chains).find(|c| c.name == *chain) {
                chain.rules.push(rule);
            }
        }
        Ok(())
    }
}

fn element(attribute: &ListAttribute<SetElementAttribute>) -> Option<Element> {
    let ListAttribute::Element(attributes) = attribute else { return None };
    let DataAttribute::Value(key) = find!(attributes, SetElementAttribute::Key)? else { return None };
    let address = <[u8; 4]>::try_from(key.as_slice())
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(key.as_slice()).map(IpAddr::from))
        .ok()?;
    let comment = find!(attributes, SetElementAttribute::UserData).and_then(|data| message::comment(data));
    Some(Element { address, comment })
}

fn base(attributes: &[ChainAttribute], hooks: &[Hook]) -> Option<Base> {
    let number = u32::from(*find!(hooks, Hook::Number)?);
    let hook = match number {
        0 => ast::Hook::Prerouting,
        1 => ast::Hook::Input,
        2 => ast::Hook::Forward,
        3 => ast::Hook::Output,
        4 => ast::Hook::Postrouting,
        _ => return None,
    };
    let kind = match find!(attributes, ChainAttribute::Type)?.as_str() {
        "filter" => ChainKind::Filter,
        "nat" => ChainKind::Nat,
        "route" => ChainKind::Route,
        _ => return None,
    };
    let priority = i32::from_ne_bytes(find!(hooks, Hook::Priority)?.to_ne_bytes());
    let accept = find!(attributes, ChainAttribute::Policy).is_none_or(|policy| *policy == 1);
    Some(Base { kind, hook, priority, policy: if accept { Policy::Accept } else { Policy::Drop } })
}
