//! PeerAuthentication → `istio.security.Authorization`: strictness as denials of peers without a proved identity. One
//! static policy serves every workload that is simply strict; a workload policy with exceptions for ports is converted
//! by itself. Pure.

use isthmus_proto::security::{Action, Authorization, Clause, Match, Rule, Scope};
use serde_json::Value;

use crate::translate::authorization::{any_string, has_selector};
use playground_k8s::api::Invalid;
use playground_k8s::manifest::object;

/// Name of the policy that denies every peer without an identity.
const STATIC_STRICT: &str = "istio_converted_static_strict";
/// The converted policies' names begin with this.
const CONVERTED: &str = "converted_peer_authentication_";

/// A mode of mutual TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Unset,
    /// Plaintext is let in; `DISABLE` means the same at the receiving side.
    Permissive,
    Strict,
}

/// The PeerAuthentications of a mesh.
#[derive(Debug)]
pub(crate) struct PeerAuthentications<'a> {
    root_namespace: &'a str,
    /// Oldest first.
    policies: Vec<&'a Value>,
}

/// Checks one object.
///
/// # Errors
/// When a field is wrong.
pub(crate) fn check(policy: &Value) -> Result<(), Invalid> {
    mode(policy.pointer("/spec/mtls"), "spec.mtls")?;
    ports(policy)?;
    Ok(())
}

impl<'a> PeerAuthentications<'a> {
    /// From every object of the kind; wrong ones are left out, since they were refused when they were written.
    pub(crate) fn new(objects: impl Iterator<Item = &'a Value>, root_namespace: &'a str) -> Self {
        let mut policies: Vec<&Value> = objects.filter(|policy| check(policy).is_ok()).collect();
        policies.sort_by_key(|policy| {
            (
                object::text(policy, "/metadata/creationTimestamp"),
                object::namespace(policy),
                object::name(policy),
            )
        });
        Self { root_namespace, policies }
    }

    /// The resources that the policies become.
    pub(crate) fn resources(&self) -> Vec<Authorization> {
        let mut resources: Vec<Authorization> =
            self.policies.iter().filter_map(|policy| self.convert(policy)).collect();
        if !self.policies.is_empty() {
            let rules = vec![Rule { clauses: vec![Clause { matches: vec![unauthenticated()] }] }];
            resources.push(denial(self.root_namespace, STATIC_STRICT, rules));
        }
        resources
    }

    /// Names of the resources that bind a workload.
    pub(crate) fn names_for(&self, workload: &Value) -> Option<String> {
        let namespace = object::namespace(workload);
        let selected = self.policies.iter().find(|policy| {
            let selector = object::string_map(policy, "/spec/selector/matchLabels");
            object::namespace(policy) == namespace
                && namespace != self.root_namespace
                && !selector.is_empty()
                && object::has_labels(workload, &selector)
        });
        let inherited = self.inherited(namespace);
        let strict = || Some(format!("{}/{STATIC_STRICT}", self.root_namespace));
        let Some(policy) = selected else {
            return inherited.then(strict).flatten();
        };
        if self.convert(policy).is_some() {
            return Some(format!("{namespace}/{CONVERTED}{}", object::name(policy)));
        }
        self.is_strict(policy).then(strict).flatten()
    }

    /// The resource of a workload policy whose ports differ from the rest; nothing for all others.
    fn convert(&self, policy: &Value) -> Option<Authorization> {
        if !has_selector(policy) || object::namespace(policy) == self.root_namespace {
            return None;
        }
        let strict = self.is_strict(policy);
        let ports = ports(policy).ok()?;
        let exceptions = ports
            .iter()
            .filter(|(_, mode)| *mode != Mode::Unset && (*mode == Mode::Strict) != strict)
            .map(|(port, _)| *port)
            .peekable();
        let mut exceptions = exceptions;
        exceptions.peek()?;
        let rules = if strict {
            let but = exceptions.map(|port| Match { not_destination_ports: vec![port], ..Match::default() });
            let clauses =
                std::iter::once(unauthenticated()).chain(but).map(|one| Clause { matches: vec![one] });
            vec![Rule { clauses: clauses.collect() }]
        } else {
            let on = |port| Match { destination_ports: vec![port], ..unauthenticated() };
            exceptions.map(|port| Rule { clauses: vec![Clause { matches: vec![on(port)] }] }).collect()
        };
        let name = format!("{CONVERTED}{}", object::name(policy));
        Some(denial(object::namespace(policy), &name, rules))
    }

    /// Whether a workload policy, ports apart, is strict.
    fn is_strict(&self, policy: &Value) -> bool {
        match mode(policy.pointer("/spec/mtls"), "") {
            Ok(Mode::Strict) => true,
            Ok(Mode::Unset) => self.inherited(object::namespace(policy)),
            _ => false,
        }
    }

    /// Whether a namespace is strict by its own policy or the mesh's.
    fn inherited(&self, namespace: &str) -> bool {
        let of = |namespace: &str| {
            let general = |policy: &&&Value| object::namespace(policy) == namespace && !has_selector(policy);
            let oldest = self.policies.iter().find(general)?;
            mode(oldest.pointer("/spec/mtls"), "").ok().filter(|mode| *mode != Mode::Unset)
        };
        of(namespace).or_else(|| of(self.root_namespace)) == Some(Mode::Strict)
    }
}

/// Peers without a proved identity.
fn unauthenticated() -> Match {
    Match { not_principals: vec![any_string()], ..Match::default() }
}

fn denial(namespace: &str, name: &str, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        ..Authorization::default()
    }
}

fn mode(mtls: Option<&Value>, at: &str) -> Result<Mode, Invalid> {
    match mtls.map_or("", |mtls| object::text(mtls, "/mode")) {
        "" | "UNSET" => Ok(Mode::Unset),
        "STRICT" => Ok(Mode::Strict),
        "PERMISSIVE" | "DISABLE" => Ok(Mode::Permissive),
        other => Err(Invalid {
            field: format!("{at}.mode"),
            problem: format!("{other:?} is not UNSET, DISABLE, PERMISSIVE or STRICT"),
        }),
    }
}

/// The modes per port, by port.
fn ports(policy: &Value) -> Result<Vec<(u32, Mode)>, Invalid> {
    let at = "spec.portLevelMtls";
    let mut ports = Vec::new();
    for (port, mtls) in policy.pointer("/spec/portLevelMtls").and_then(Value::as_object).into_iter().flatten()
    {
        let number = port.parse::<u16>().ok().filter(|port| *port != 0);
        let bad = || Invalid { field: at.to_owned(), problem: format!("{port:?} is no port") };
        ports.push((number.ok_or_else(bad)?.into(), mode(Some(mtls), &format!("{at}[{port}]"))?));
    }
    ports.sort_by_key(|(port, _)| *port);
    Ok(ports)
}
