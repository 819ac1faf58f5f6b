//! Objects → what to listen for, and the status that says so. Pure: the same objects give the same answer in every
//! replica; only transition times come from the clock.

mod addresses;
mod backends;
mod listeners;
mod ports;
mod routes;
#[cfg(test)]
mod tests;

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::objects::{Gateway, ObjectName, Version, text};
use crate::status::{Condition, Observed, StatusPatch, difference, merged};
use crate::store::Objects;
use crate::{CLASS, CONTROLLER, Listeners, Settings};

use self::addresses::Addresses;
use self::listeners::Declared;
use self::routes::Attachments;

/// The class that istiods look for when they search another cluster's gateway.
const ISTIO_CLASS: &str = "istio-east-west";
/// Classes that an istiod knows by their name.
const ISTIO_CLASSES: [&str; 4] = ["istio", "istio-waypoint", "istio-remote", ISTIO_CLASS];
/// The label of the network that a gateway leads into.
const NETWORK: &str = "topology.istio.io/network";

/// What the objects mean.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Translation {
    /// What to listen for; `None` when there is no Gateway of the name.
    pub(crate) listeners: Option<Listeners>,
    /// Statuses that differ from the stored ones.
    pub(crate) patches: Vec<StatusPatch>,
    /// What an operator should know and no status says.
    pub(crate) warnings: Vec<String>,
}

/// Translates everything. `now` is for transitions, in RFC 3339.
pub(crate) fn translate(objects: &Objects, settings: &Settings, now: &str) -> Translation {
    let name = ObjectName::new(&*settings.namespace, &*settings.name);
    let mut patches: Vec<StatusPatch> = classes(objects, now).collect();
    let Some(gateway) = objects.gateway(&name) else {
        return Translation { patches, ..Translation::default() };
    };
    let declared = listeners::declared(&gateway.spec.listeners, settings);
    let attachments = routes::attach(objects, &name, &declared, settings);
    if is_ours(objects, &gateway.spec.gateway_class_name) {
        let addresses = addresses::of(objects, &name, gateway);
        patches.extend(gateway_status(&name, gateway, &declared, &attachments, &addresses, now));
        patches.extend(routes::statuses(objects, &name, &attachments, now));
    }
    Translation {
        listeners: Some(ports::carried(&declared, &attachments)),
        patches,
        warnings: warnings(gateway, &declared, settings),
    }
}

/// Whether the status of Gateways of a class is ours to write: the class names our controller, or there is no such class
/// object and so no other controller. While classes cannot be read, it is not. An istiod writes the status of Gateways
/// whose class has one of its own names even if that class names another controller, so where there is an istiod, they
/// are its.
fn is_ours(objects: &Objects, class: &str) -> bool {
    let istiod = objects.classes().any(|(_, other)| other.controller.starts_with("istio.io/"));
    if istiod && ISTIO_CLASSES.contains(&class) {
        return false;
    }
    match objects.classes().find(|(name, _)| *name == class) {
        Some((_, found)) => found.controller == CONTROLLER,
        None => objects.is_listed(Kind::GatewayClass),
    }
}

/// The status of every class that names our controller.
fn classes<'a>(objects: &'a Objects, now: &'a str) -> impl Iterator<Item = StatusPatch> + 'a {
    let ours = objects.classes().filter(|(_, class)| class.controller == CONTROLLER);
    ours.filter_map(move |(name, class)| {
        let accepted = [Condition::is_true("Accepted", "Accepted").saying("served by isthmus gateways")];
        let observed = Observed { generation: class.version.generation, now };
        let conditions = merged(class.status.get("conditions"), &accepted, observed);
        let status = json!({"conditions": conditions});
        patch(Kind::GatewayClass, &ObjectName::new("", name), (&class.version, &class.status), status)
    })
}

fn gateway_status(
    name: &ObjectName,
    gateway: &Gateway,
    declared: &[Declared<'_>],
    attachments: &Attachments<'_>,
    addresses: &Addresses,
    now: &str,
) -> Option<StatusPatch> {
    let observed = Observed { generation: gateway.version.generation, now };
    let valid = declared.iter().filter(|one| one.is_valid()).count();
    let accepted = Condition::is_true("Accepted", "Accepted");
    let accepted = match (valid, valid == declared.len()) {
        (_, true) if valid > 0 => accepted,
        (0, _) => Condition::is_false("Accepted", "ListenersNotValid", "no listener can be served"),
        _ => Condition::is_true("Accepted", "ListenersNotValid").saying("some listeners cannot be served"),
    };
    let programmed = match (&addresses.missing, valid) {
        (_, 0) => Condition::is_false("Programmed", "Invalid", "no listener can be served"),
        (Some(why), _) => Condition::is_false("Programmed", "AddressNotAssigned", why),
        (None, _) => Condition::is_true("Programmed", "Programmed"),
    };
    let stored = |listener: &str| {
        let all = gateway.status.get("listeners").and_then(Value::as_array);
        all.into_iter().flatten().find(|one| text(one, "/name") == listener)
    };
    let listeners: Vec<Value> =
        declared.iter().map(|one| one.status(attachments.count(one), stored(one.name()), observed)).collect();
    let status = json!({
        "addresses": addresses.json(),
        "conditions": merged(gateway.status.get("conditions"), &[accepted, programmed], observed),
        "listeners": listeners,
    });
    patch(Kind::Gateway, name, (&gateway.version, &gateway.status), status)
}

fn patch(
    kind: Kind,
    name: &ObjectName,
    (version, stored): (&Version, &Value),
    wanted: Value,
) -> Option<StatusPatch> {
    let status = difference(stored, wanted)?;
    Some(StatusPatch { kind, name: name.clone(), resource_version: version.resource.clone(), status })
}

fn warnings(gateway: &Gateway, declared: &[Declared<'_>], settings: &Settings) -> Vec<String> {
    let mut all: Vec<String> = declared.iter().filter_map(Declared::problem).collect();
    let network = gateway.labels.get(NETWORK).map_or("", String::as_str);
    if declared.iter().any(Declared::is_hbone) && network != settings.network {
        all.push(format!(
            "label {NETWORK} is {network:?} and NETWORK is {:?}: other networks look for this gateway under the label",
            settings.network
        ));
    }
    if gateway.spec.gateway_class_name == CLASS {
        all.push(format!(
            "class {CLASS}: istiods of other clusters find gateways of class {ISTIO_CLASS} only; each of them needs a \
             Gateway of class istio-remote for this network"
        ));
    }
    all
}
