//! Which routes attach to which listeners, with which hostnames, and the routes' statuses.

use serde::Deserialize as _;
use serde_json::{Value, json};

use super::backends;
use super::listeners::{Declared, Protocol, hostname};
use crate::kinds::Kind;
use crate::objects::{ObjectName, ParentRef, Route, text};
use crate::status::{Condition, Observed, StatusPatch, merged};
use crate::store::Objects;
use crate::{Backend, CONTROLLER, Settings};

/// The routes of a Gateway.
#[derive(Debug, Default)]
pub(crate) struct Attachments<'a> {
    routes: Vec<Referring<'a>>,
}

/// A route that refers to the Gateway.
#[derive(Debug)]
struct Referring<'a> {
    kind: Kind,
    name: &'a ObjectName,
    backends: Vec<Backend>,
    resolved: Condition,
    /// One for each reference to the Gateway.
    parents: Vec<Parent<'a>>,
}

/// What became of one reference.
#[derive(Debug)]
struct Parent<'a> {
    reference: &'a Value,
    outcome: Result<Vec<AttachedTo>, Condition>,
}

/// A listener that a route attached to.
#[derive(Debug)]
struct AttachedTo {
    listener: String,
    hostnames: Vec<Option<String>>,
}

/// A route as a listener sees it.
#[derive(Debug)]
pub(super) struct Attached<'a> {
    /// The names that it is for; `None` is any.
    pub(super) hostnames: &'a [Option<String>],
    pub(super) backends: &'a [Backend],
}

/// Attaches every route that refers to the Gateway, the oldest first.
pub(super) fn attach<'a>(
    objects: &'a Objects,
    gateway: &ObjectName,
    declared: &[Declared<'_>],
    settings: &Settings,
) -> Attachments<'a> {
    let mut routes = Vec::new();
    for (kind, name, route) in objects.routes() {
        let mut parents = Vec::new();
        for reference in &route.spec.parent_refs {
            let Ok(parsed) = ParentRef::deserialize(reference) else { continue };
            if parsed.is(gateway, &name.namespace) {
                let outcome = outcome(objects, gateway, (kind, name, route), declared, &parsed);
                parents.push(Parent { reference, outcome });
            }
        }
        if !parents.is_empty() {
            let (backends, resolved) = backends::of(objects, kind, name, route, settings);
            routes.push(Referring { kind, name, backends, resolved, parents });
        }
    }
    Attachments { routes }
}

fn outcome(
    objects: &Objects,
    gateway: &ObjectName,
    (kind, name, route): (Kind, &ObjectName, &Route),
    declared: &[Declared<'_>],
    reference: &ParentRef,
) -> Result<Vec<AttachedTo>, Condition> {
    let refused = |reason, message: &str| Condition::is_false("Accepted", reason, message);
    let named: Vec<_> = declared
        .iter()
        .filter(|one| reference.section_name.as_ref().is_none_or(|section| *section == one.spec.name))
        .filter(|one| reference.port.is_none_or(|port| port == one.spec.port))
        .collect();
    if named.is_empty() {
        return Err(refused("NoMatchingParent", "the Gateway has no such listener"));
    }
    let fits = |one: &&Declared<'_>| {
        let kinds = &one.spec.allowed_routes.kinds;
        one.protocol.and_then(Protocol::route) == Some(kind)
            && (kinds.is_empty() || kinds.iter().any(|allowed| allowed.kind == kind.name()))
            && allows(objects, gateway, one, &name.namespace)
    };
    let allowed: Vec<_> = named.into_iter().filter(fits).collect();
    if allowed.is_empty() {
        return Err(refused(
            "NotAllowedByListeners",
            "no listener allows this kind of route from its namespace",
        ));
    }
    let attach = |one: &Declared<'_>| {
        let hostnames = match kind {
            Kind::TlsRoute => intersection(hostname(one.spec), &route.spec.hostnames),
            _ => vec![None],
        };
        let listener = one.spec.name.clone();
        (!hostnames.is_empty()).then_some(AttachedTo { listener, hostnames })
    };
    let attached: Vec<_> = allowed.into_iter().filter_map(attach).collect();
    if attached.is_empty() {
        return Err(refused("NoMatchingListenerHostname", "no hostname of the route is one of a listener's"));
    }
    Ok(attached)
}

/// Whether a listener takes routes of a namespace.
fn allows(objects: &Objects, gateway: &ObjectName, one: &Declared<'_>, namespace: &str) -> bool {
    let allowed = &one.spec.allowed_routes.namespaces;
    match allowed.from.as_deref() {
        Some("All") => true,
        Some("Selector") => {
            objects.namespace(namespace).is_some_and(|labels| allowed.selector.matches(labels))
        }
        None | Some("Same") => namespace == gateway.namespace,
        Some(_) => false,
    }
}

/// The names that both a listener and a route are for; `None` is any name.
fn intersection(listener: Option<String>, route: &[String]) -> Vec<Option<String>> {
    if route.is_empty() {
        return vec![listener];
    }
    let route = route.iter().map(|name| name.to_ascii_lowercase());
    match listener {
        None => route.map(Some).collect(),
        Some(listener) => route.filter_map(|name| narrower(&listener, &name).map(Some)).collect(),
    }
}

fn narrower(one: &str, other: &str) -> Option<String> {
    let covers = |wildcard: &str, name: &str| {
        let suffix = wildcard.strip_prefix('*').filter(|suffix| suffix.starts_with('.'));
        suffix.is_some_and(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
    };
    if one == other || covers(one, other) {
        return Some(other.to_owned());
    }
    covers(other, one).then(|| one.to_owned())
}

/// The statuses of routes that refer to the Gateway, and of those that did.
pub(super) fn statuses(
    objects: &Objects,
    gateway: &ObjectName,
    attachments: &Attachments<'_>,
    now: &str,
) -> Vec<StatusPatch> {
    let mut patches = Vec::new();
    for (kind, name, route) in objects.routes() {
        let observed = Observed { generation: route.version.generation, now };
        let stored = route.status.get("parents").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let is_ours = |entry: &&Value| {
            let parent = entry.get("parentRef").and_then(|parent| ParentRef::deserialize(parent).ok());
            text(entry, "/controllerName") == CONTROLLER
                && parent.is_some_and(|parent| parent.is(gateway, &name.namespace))
        };
        let (ours, others): (Vec<&Value>, Vec<&Value>) = stored.iter().partition(is_ours);
        let referring = attachments.routes.iter().find(|one| one.kind == kind && one.name == name);
        let parents = referring.map(|one| one.parents(&ours, observed)).unwrap_or_default();
        if parents.is_empty() && ours.is_empty() {
            continue;
        }
        let all: Vec<Value> = others.into_iter().cloned().chain(parents).collect();
        // The order of entries means nothing: only another content is written.
        if all.len() == stored.len() && all.iter().all(|entry| stored.contains(entry)) {
            continue;
        }
        patches.extend(super::patch(kind, name, (&route.version, &route.status), json!({"parents": all})));
    }
    patches
}

impl Referring<'_> {
    /// The entries of the route's status.
    fn parents(&self, stored: &[&Value], observed: Observed<'_>) -> Vec<Value> {
        let entry = |parent: &Parent<'_>| {
            let accepted = match &parent.outcome {
                Ok(_) => Condition::is_true("Accepted", "Accepted"),
                Err(refused) => refused.clone(),
            };
            let before = stored.iter().find(|entry| entry.get("parentRef") == Some(parent.reference));
            let before = before.and_then(|entry| entry.get("conditions"));
            json!({
                "parentRef": parent.reference, "controllerName": CONTROLLER,
                "conditions": merged(before, &[accepted, self.resolved.clone()], observed),
            })
        };
        self.parents.iter().map(entry).collect()
    }

    /// What the route attached to of one listener.
    fn attached_to(&self, listener: &str) -> impl Iterator<Item = &AttachedTo> {
        let attached = self.parents.iter().filter_map(|parent| parent.outcome.as_ref().ok()).flatten();
        attached.filter(move |one| one.listener == listener)
    }
}

impl Attachments<'_> {
    /// The routes of a listener, the oldest first.
    pub(super) fn of(&self, listener: &Declared<'_>) -> Vec<Attached<'_>> {
        let mut all = Vec::new();
        for one in &self.routes {
            let attached = one.attached_to(&listener.spec.name);
            all.extend(attached.map(|to| Attached { hostnames: &to.hostnames, backends: &one.backends }));
        }
        all
    }

    /// How many routes a listener has.
    pub(super) fn count(&self, listener: &Declared<'_>) -> usize {
        self.routes.iter().filter(|one| one.attached_to(&listener.spec.name).next().is_some()).count()
    }
}
