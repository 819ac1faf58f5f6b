//! What the watches have reported so far, by kind. Pure: it takes events and says whether something changed that the
//! translation uses.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_proto::enroll::Labels;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;

use crate::kinds::Kind;
use crate::objects::{Gateway, GatewayClass, Object, ObjectName, Pod, ReferenceGrant, Route, Service};

/// The objects of every kind.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    kinds: BTreeMap<Kind, KindObjects>,
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct KindObjects {
    objects: BTreeMap<ObjectName, Object>,
    /// Of a list in progress: the names that it held so far.
    listing: Option<BTreeSet<ObjectName>>,
    listed: bool,
    /// Why the kind cannot be read; without effect on what was read before.
    refused: Option<String>,
}

impl Objects {
    /// Takes in an event; whether something that is used changed.
    pub(crate) fn apply(&mut self, kind: Kind, event: Event<DynamicObject>) -> bool {
        let of_kind = self.kinds.entry(kind).or_default();
        match event {
            Event::Init => {
                of_kind.listing = Some(BTreeSet::new());
                false
            }
            Event::InitApply(object) => {
                if let Some(names) = &mut of_kind.listing {
                    names.insert(ObjectName::of(&object));
                }
                of_kind.put(kind, &object)
            }
            Event::InitDone => of_kind.finish_list(),
            Event::Apply(object) => of_kind.put(kind, &object),
            Event::Delete(object) => of_kind.objects.remove(&ObjectName::of(&object)).is_some(),
        }
    }

    /// The kind cannot be read, for this reason; whether that is news.
    pub(crate) fn refuse(&mut self, kind: Kind, why: String) -> bool {
        let of_kind = self.kinds.entry(kind).or_default();
        let is_news = of_kind.refused.as_ref() != Some(&why);
        of_kind.refused = Some(why);
        is_news
    }

    /// Whether every kind was listed once, or cannot be.
    pub(crate) fn is_complete(&self) -> bool {
        let complete = |of_kind: &KindObjects| of_kind.listed || of_kind.refused.is_some();
        Kind::ALL.iter().all(|kind| self.kinds.get(kind).is_some_and(complete))
    }

    /// Whether a kind was listed: what is not there does not exist.
    pub(crate) fn is_listed(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_some_and(|of_kind| of_kind.listed)
    }

    pub(crate) fn classes(&self) -> impl Iterator<Item = (&str, &GatewayClass)> {
        self.of(Kind::GatewayClass).filter_map(|(name, object)| match object {
            Object::Class(class) => Some((name.name.as_str(), class)),
            _ => None,
        })
    }

    pub(crate) fn gateway(&self, name: &ObjectName) -> Option<&Gateway> {
        match self.get(Kind::Gateway, name)? {
            Object::Gateway(gateway) => Some(gateway),
            _ => None,
        }
    }

    /// The routes of both kinds: the oldest first, by name among those of one age, which is the order in which they
    /// win where they conflict.
    pub(crate) fn routes(&self) -> Vec<(Kind, &ObjectName, &Route)> {
        let of = |kind| {
            self.of(kind).filter_map(move |(name, object)| match object {
                Object::Route(route) => Some((kind, name, &**route)),
                _ => None,
            })
        };
        let mut all: Vec<_> = of(Kind::TlsRoute).chain(of(Kind::TcpRoute)).collect();
        all.sort_by_key(|(kind, name, route)| (&route.version.created, *name, *kind));
        all
    }

    /// The grants of a namespace.
    pub(crate) fn grants<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a ReferenceGrant> {
        self.of(Kind::ReferenceGrant).filter_map(move |(name, object)| match object {
            Object::Grant(grant) if name.namespace == namespace => Some(grant),
            _ => None,
        })
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<&Labels> {
        match self.get(Kind::Namespace, &ObjectName::new("", name))? {
            Object::Namespace(labels) => Some(labels),
            _ => None,
        }
    }

    pub(crate) fn has_service(&self, name: &ObjectName) -> bool {
        self.get(Kind::Service, name).is_some()
    }

    /// The Services of a Gateway: those with its label, and those of its namespace that it names.
    pub(crate) fn services_of<'a>(
        &'a self,
        gateway: &'a ObjectName,
        named: &'a [&str],
    ) -> impl Iterator<Item = &'a Service> {
        self.of(Kind::Service).filter_map(move |(name, object)| match object {
            Object::Service(service)
                if belongs(name, service.gateway.as_deref(), gateway)
                    || name.namespace == gateway.namespace && named.contains(&name.name.as_str()) =>
            {
                Some(service)
            }
            _ => None,
        })
    }

    /// The pods of a Gateway.
    pub(crate) fn pods_of<'a>(&'a self, gateway: &'a ObjectName) -> impl Iterator<Item = &'a Pod> {
        self.of(Kind::Pod).filter_map(move |(name, object)| match object {
            Object::Pod(pod) if belongs(name, pod.gateway.as_deref(), gateway) => Some(pod),
            _ => None,
        })
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = (&ObjectName, &Object)> {
        self.kinds.get(&kind).into_iter().flat_map(|of_kind| &of_kind.objects)
    }

    fn get(&self, kind: Kind, name: &ObjectName) -> Option<&Object> {
        self.kinds.get(&kind)?.objects.get(name)
    }
}

impl KindObjects {
    fn put(&mut self, kind: Kind, object: &DynamicObject) -> bool {
        let name = ObjectName::of(object);
        match Object::parse(kind, object) {
            Ok(parsed) => {
                let changed = self.objects.get(&name) != Some(&parsed);
                self.objects.insert(name, parsed);
                changed
            }
            Err(error) => {
                let ObjectName { namespace, name } = name;
                tracing::warn!(
                    kind = kind.name(), namespace, name, %error,
                    "object ignored: it does not parse, what it said before stays in force"
                );
                false
            }
        }
    }

    /// Drops what the list did not hold.
    fn finish_list(&mut self) -> bool {
        let before = (self.objects.len(), self.listed, self.refused.is_some());
        if let Some(names) = self.listing.take() {
            self.objects.retain(|name, _| names.contains(name));
        }
        (self.listed, self.refused) = (true, None);
        before != (self.objects.len(), true, false)
    }
}

fn belongs(name: &ObjectName, label: Option<&str>, gateway: &ObjectName) -> bool {
    name.namespace == gateway.namespace && label == Some(gateway.name.as_str())
}
