//! What a ServiceEntry or a WorkloadEntry must be like: the rules by which Istio's API refuses one. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use playground_k8s::api::Invalid;
use playground_k8s::manifest::object;

/// The ways in which the endpoints of an entry are found.
const RESOLUTIONS: [&str; 5] = ["", "NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN"];

/// Checks a ServiceEntry.
///
/// # Errors
/// With the first field that is wrong.
pub(crate) fn service_entry(entry: &Value) -> Result<(), Invalid> {
    let resolution = object::text(entry, "/spec/resolution");
    if !RESOLUTIONS.contains(&resolution) {
        let problem = format!("{resolution:?} is not NONE, STATIC, DNS or DNS_ROUND_ROBIN");
        return Err(invalid("spec.resolution", problem));
    }
    if !matches!(object::text(entry, "/spec/location"), "" | "MESH_EXTERNAL" | "MESH_INTERNAL") {
        return Err(invalid("spec.location", "is not MESH_EXTERNAL or MESH_INTERNAL"));
    }
    hosts(entry, resolution)?;
    for (at, address) in list(entry, "addresses")?.iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        let is_range = text.parse::<IpNet>().is_ok();
        if !is_range && text.parse::<IpAddr>().is_err() {
            return Err(invalid(
                format!("spec.addresses[{at}]"),
                format!("{address} is no address and no CIDR block"),
            ));
        }
        if is_range && resolution.starts_with("DNS") {
            return Err(invalid(
                format!("spec.addresses[{at}]"),
                "CIDR blocks do not go with resolution DNS",
            ));
        }
    }
    ports(entry)?;
    let endpoints = list(entry, "endpoints")?;
    let selects = entry.pointer("/spec/workloadSelector").is_some_and(Value::is_object);
    if selects && !endpoints.is_empty() {
        return Err(invalid("spec.workloadSelector", "does not go with spec.endpoints"));
    }
    if matches!(resolution, "" | "NONE") && !endpoints.is_empty() {
        return Err(invalid("spec.endpoints", "do not go with resolution NONE"));
    }
    for (at, one) in endpoints.iter().enumerate() {
        endpoint(one, &format!("spec.endpoints[{at}]"), resolution)?;
    }
    Ok(())
}

/// Checks a WorkloadEntry.
///
/// # Errors
/// With the first field that is wrong.
pub(crate) fn workload_entry(entry: &Value) -> Result<(), Invalid> {
    endpoint(&entry["spec"], "spec", "")
}

fn hosts(entry: &Value, resolution: &str) -> Result<(), Invalid> {
    let hosts = list(entry, "hosts")?;
    if hosts.is_empty() {
        return Err(invalid("spec.hosts", "at least one is required"));
    }
    for (at, host) in hosts.iter().enumerate() {
        let text = host.as_str().unwrap_or_default();
        let field = format!("spec.hosts[{at}]");
        if !is_name(text.strip_prefix("*.").unwrap_or(text)) {
            return Err(invalid(field, format!("{host} is no host name")));
        }
        let is_found = resolution.starts_with("DNS") && list(entry, "endpoints")?.is_empty();
        if text.starts_with('*') && is_found {
            return Err(invalid(field, "a wildcard cannot be found by DNS"));
        }
    }
    Ok(())
}

fn ports(entry: &Value) -> Result<(), Invalid> {
    let mut names = std::collections::BTreeSet::new();
    for (at, port) in list(entry, "ports")?.iter().enumerate() {
        number(port.get("number"), &format!("spec.ports[{at}].number"))?;
        if port.get("targetPort").is_some() {
            number(port.get("targetPort"), &format!("spec.ports[{at}].targetPort"))?;
        }
        let name = object::text(port, "/name");
        if name.is_empty() || !names.insert(name) {
            return Err(invalid(
                format!("spec.ports[{at}].name"),
                format!("{name:?} is empty or given twice"),
            ));
        }
    }
    Ok(())
}

fn endpoint(endpoint: &Value, at: &str, resolution: &str) -> Result<(), Invalid> {
    let address = object::text(endpoint, "/address");
    let field = format!("{at}.address");
    if address.is_empty() && object::text(endpoint, "/network").is_empty() {
        return Err(invalid(field, "is required"));
    }
    let is_ip = address.parse::<IpAddr>().is_ok();
    if resolution == "STATIC" && !is_ip {
        return Err(invalid(field, format!("{address:?} is no address, as resolution STATIC wants")));
    }
    if !address.is_empty() && !is_ip && !is_name(address) {
        return Err(invalid(field, format!("{address:?} is no address and no host name")));
    }
    for (name, port) in endpoint.get("ports").and_then(Value::as_object).into_iter().flatten() {
        number(Some(port), &format!("{at}.ports.{name}"))?;
    }
    let weight = endpoint.get("weight");
    if weight.is_some_and(|weight| weight.as_u64().is_none_or(|weight| u32::try_from(weight).is_err())) {
        return Err(invalid(format!("{at}.weight"), "is no weight"));
    }
    Ok(())
}

fn number(port: Option<&Value>, field: &str) -> Result<(), Invalid> {
    let number = port.and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
    match number {
        Some(1..) => Ok(()),
        _ => Err(invalid(field, format!("{} is no port", port.unwrap_or(&Value::Null)))),
    }
}

fn is_name(text: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty()
        && text.len() <= 253
        && text.chars().all(is_good)
        && text.split('.').all(|label| !label.is_empty())
}

fn list<'v>(entry: &'v Value, name: &str) -> Result<&'v [Value], Invalid> {
    match entry.pointer(&format!("/spec/{name}")) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(values)) => Ok(values),
        Some(_) => Err(invalid(format!("spec.{name}"), "is no list")),
    }
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Invalid {
    Invalid { field: field.into(), problem: problem.into() }
}
