//! What is filled in and checked per kind when an object is written: defaults of pods and namespaces, addresses of
//! services, and the mesh's own kinds through the translation that the control plane uses.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::error::Error;
use super::store::{Key, Tx};
use super::text::hash;
use crate::manifest::{Kind, object};

/// The first addresses of the range are left for services that ask for one.
const RESERVED: u32 = 256;

/// What admission needs to know of the cluster.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    /// Where services' addresses come from.
    pub(super) service_cidr: Ipv4Net,
    /// Asked about every object that is written, as a validating webhook is.
    pub(super) webhook: Webhook,
}

/// Checks an object of a kind that has rules beyond Kubernetes' own.
pub type Webhook = fn(&Kind, &Value) -> Result<(), Invalid>;

/// A field of an object that a [`Webhook`] refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Path of the field, such as `spec.rules[0].from[0].source.ipBlocks`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Completes and checks a new object.
///
/// # Errors
/// When a field is wrong or names what does not exist.
pub(super) fn on_create(
    admission: &Admission,
    tx: &Tx<'_>,
    kind: &'static Kind,
    object: &mut Value,
) -> Result<(), Error> {
    match kind.kind {
        "Namespace" => {
            let name = Value::String(object::name(object).to_owned());
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["status"] = json!({"phase": "Active"});
        }
        "Pod" => pod(tx, kind, object)?,
        "Service" => {
            service_defaults(object);
            admission.assign(tx, kind, object, None)?;
        }
        _ => {}
    }
    admission.validate(kind, object)
}

/// Completes and checks a changed object.
///
/// # Errors
/// When a field is wrong or must not change.
pub(super) fn on_update(
    admission: &Admission,
    tx: &Tx<'_>,
    key: &Key,
    current: &Value,
    next: &mut Value,
) -> Result<(), Error> {
    if key.kind.kind == "Service" {
        if object::text(next, "/spec/clusterIP").is_empty() {
            for field in ["clusterIP", "clusterIPs"] {
                next["spec"][field] = current["spec"][field].clone();
            }
        }
        service_defaults(next);
        admission.assign(tx, key.kind, next, Some(current))?;
    }
    admission.validate(key.kind, next)
}

fn containers(kind: &'static Kind, name: &str, object: &Value, pointer: &str) -> Result<(), Error> {
    let field = pointer.trim_start_matches('/').replace('/', ".");
    let containers = object::list(object, pointer);
    if containers.is_empty() || containers.iter().any(|container| object::text(container, "/name").is_empty())
    {
        return Err(Error::invalid(
            kind,
            name,
            field,
            "at least one container, each with a name, is required",
        ));
    }
    Ok(())
}

fn pod(tx: &Tx<'_>, kind: &'static Kind, object: &mut Value) -> Result<(), Error> {
    let name = object::name(object).to_owned();
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else {
        return Err(Error::invalid(kind, &name, "spec", "is required"));
    };
    for (field, default) in [
        ("serviceAccountName", json!("default")),
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
    ] {
        spec.entry(field).or_insert(default);
    }
    let account = object::text(object, "/spec/serviceAccountName").to_owned();
    let namespace = object::namespace(object);
    let exists = Kind::named("ServiceAccount")
        .is_some_and(|accounts| tx.get(&Key::new(accounts, namespace, &account)).is_some());
    if !exists {
        let problem = format!("serviceaccount {namespace}/{account} was not found");
        return Err(Error::Forbidden(kind, name, problem));
    }
    object["status"] = json!({"phase": "Pending"});
    Ok(())
}

fn service_defaults(object: &mut Value) {
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    if let Some(spec) = object["spec"].as_object_mut() {
        spec.entry("type").or_insert_with(|| json!("ClusterIP"));
        spec.entry("sessionAffinity").or_insert_with(|| json!("None"));
    }
    for port in object["spec"]["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut)
    {
        port.entry("protocol").or_insert_with(|| json!("TCP"));
        let number = port.get("port").cloned().unwrap_or_default();
        port.entry("targetPort").or_insert(number);
    }
}

// === impl Admission ===

impl Admission {
    /// Checks what has rules of its own, Kubernetes' first.
    fn validate(&self, kind: &'static Kind, object: &Value) -> Result<(), Error> {
        let name = object::name(object);
        match kind.kind {
            "Deployment" | "DaemonSet" => {
                let selector = object::string_map(object, "/spec/selector/matchLabels");
                let labels = object::string_map(object, "/spec/template/metadata/labels");
                if selector.is_empty() || !selector.iter().all(|(key, value)| labels.get(key) == Some(value))
                {
                    let problem = "does not match spec.template.metadata.labels";
                    return Err(Error::invalid(kind, name, "spec.selector.matchLabels", problem));
                }
                containers(kind, name, object, "/spec/template/spec/containers")?;
            }
            "Pod" => containers(kind, name, object, "/spec/containers")?,
            _ => {}
        }
        (self.webhook)(kind, object)
            .map_err(|refused| Error::invalid(kind, name, refused.field, refused.problem))
    }

    /// Gives a service its cluster IP, or checks the one that it has.
    fn assign(
        &self,
        tx: &Tx<'_>,
        kind: &'static Kind,
        object: &mut Value,
        current: Option<&Value>,
    ) -> Result<(), Error> {
        let name = object::name(object).to_owned();
        if object::text(object, "/spec/type") == "ExternalName" {
            return Ok(());
        }
        let given = object::text(object, "/spec/clusterIP").to_owned();
        let before =
            current.map(|current| object::text(current, "/spec/clusterIP")).filter(|ip| !ip.is_empty());
        let address = match (given.as_str(), before) {
            (given, Some(before)) if given == before => given.to_owned(),
            (_, Some(_)) => {
                return Err(Error::invalid(kind, &name, "spec.clusterIP", "field is immutable"));
            }
            ("None", None) => "None".to_owned(),
            ("", None) => self.free(tx, kind, object)?.to_string(),
            (given, None) => {
                let taken = |service: &Value| object::text(service, "/spec/clusterIP") == given;
                let is_ours =
                    given.parse::<Ipv4Addr>().is_ok_and(|address| self.service_cidr.contains(&address));
                if !is_ours {
                    let problem = format!("{given:?} is no address of {}", self.service_cidr);
                    return Err(Error::invalid(kind, &name, "spec.clusterIP", problem));
                }
                if tx.list(kind, None).iter().any(|service| taken(service)) {
                    let problem = format!("{given} is already allocated");
                    return Err(Error::invalid(kind, &name, "spec.clusterIP", problem));
                }
                given.to_owned()
            }
        };
        object["spec"]["clusterIPs"] = json!([address]);
        object["spec"]["clusterIP"] = Value::String(address);
        object["spec"]["ipFamilies"] = json!(["IPv4"]);
        object["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        Ok(())
    }

    /// An address that no service has; the same service gets the same one in every run, unless it is taken.
    fn free(&self, tx: &Tx<'_>, kind: &'static Kind, object: &Value) -> Result<IpAddr, Error> {
        let taken: Vec<String> = tx
            .list(kind, None)
            .iter()
            .map(|service| object::text(service, "/spec/clusterIP").to_owned())
            .collect();
        let first = u32::from(self.service_cidr.network());
        let size = u32::from(self.service_cidr.broadcast()) - first;
        // The network's own address and the broadcast address are never allocated.
        let from = if size > 2 * RESERVED { RESERVED } else { 1 };
        let count = u64::from(size.saturating_sub(from)).max(1);
        let start = hash(&(object::namespace(object), object::name(object))) % count;
        let candidate = |step: u64| {
            let offset = u32::try_from((start + step) % count).unwrap_or_default();
            Ipv4Addr::from(first + from + offset)
        };
        let mut candidates = (0..count).map(candidate);
        let found = candidates.find(|address| !taken.contains(&address.to_string()));
        let full = || {
            let problem = format!("{} has no free address", self.service_cidr);
            Error::invalid(kind, object::name(object), "spec.clusterIP", problem)
        };
        found.map(IpAddr::V4).ok_or_else(full)
    }
}
