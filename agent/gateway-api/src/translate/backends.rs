//! Backends of a route: which Services they are, whether they exist, and whether the route may refer to them.

use isthmus_model::Authority;

use crate::kinds::{GROUP, Kind};
use crate::objects::{BackendRef, ObjectName, Route};
use crate::status::Condition;
use crate::store::Objects;
use crate::{Backend, Settings};

/// The backends of a route's first rule, which is its only one, and whether all of them can be used.
pub(super) fn of(
    objects: &Objects,
    kind: Kind,
    name: &ObjectName,
    route: &Route,
    settings: &Settings,
) -> (Vec<Backend>, Condition) {
    let mut problem = None;
    let refs = route.spec.rules.first().map(|rule| rule.backend_refs.as_slice()).unwrap_or_default();
    let backends = refs.iter().map(|backend| {
        let target = target(objects, kind, name, backend, settings);
        let weight = backend.weight.unwrap_or(1);
        match target {
            Ok(target) => Backend { target: Some(target), weight },
            Err(why) => {
                problem.get_or_insert(why);
                Backend { target: None, weight }
            }
        }
    });
    let backends = backends.collect();
    let resolved = match problem {
        None => Condition::is_true("ResolvedRefs", "ResolvedRefs"),
        Some((reason, message)) => Condition::is_false("ResolvedRefs", reason, message),
    };
    (backends, resolved)
}

/// Reason and message of a condition.
type Problem = (&'static str, String);

fn target(
    objects: &Objects,
    kind: Kind,
    route: &ObjectName,
    backend: &BackendRef,
    settings: &Settings,
) -> Result<Authority, Problem> {
    let group = backend.group.as_deref().unwrap_or_default();
    let of = backend.kind.as_deref().unwrap_or("Service");
    if !group.is_empty() || of != "Service" {
        return Err((
            "InvalidKind",
            format!("backend {} is a {of}, only Services are supported", backend.name),
        ));
    }
    let namespace = backend.namespace.as_deref().unwrap_or(&route.namespace);
    let service = ObjectName::new(namespace, &*backend.name);
    if namespace != route.namespace && !is_granted(objects, kind, route, &service) {
        let message = format!("no ReferenceGrant in namespace {namespace} allows Service {}", backend.name);
        return Err(("RefNotPermitted", message));
    }
    let Some(port) = backend.port else {
        return Err(("UnsupportedValue", format!("backend {} has no port", backend.name)));
    };
    // While Services cannot be read, the connection will tell.
    if objects.is_listed(Kind::Service) && !objects.has_service(&service) {
        return Err(("BackendNotFound", format!("Service {namespace}/{} does not exist", backend.name)));
    }
    let hostname = format!("{}.{namespace}.svc.{}", backend.name, settings.cluster_domain);
    Ok(Authority::Host { hostname: hostname.into(), port })
}

fn is_granted(objects: &Objects, kind: Kind, route: &ObjectName, service: &ObjectName) -> bool {
    objects.grants(&service.namespace).any(|grant| {
        let from = grant.from.iter().any(|from| {
            (&*from.group, &*from.kind, &*from.namespace) == (GROUP, kind.name(), route.namespace.as_str())
        });
        let to = grant.to.iter().any(|to| {
            (&*to.group, &*to.kind) == ("", "Service")
                && to.name.as_ref().is_none_or(|name| *name == service.name)
        });
        from && to
    })
}
