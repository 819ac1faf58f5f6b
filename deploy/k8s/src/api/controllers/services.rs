//! External addresses: of LoadBalancer services and of gateways.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Settings;
use crate::api::store::{Tx, key_of};
use crate::api::text::time;
use crate::api::verbs::Context;
use crate::manifest::{Kind, object};

/// By this label a service says which gateway it belongs to.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Classes whose Gateways are served by pods that write the status themselves.
const SERVED: [&str; 3] = ["istio-east-west", "istio", "isthmus-east-west"];

/// Publishes the addresses that were given to the server, and a gateway's own `spec.addresses`. What was given none
/// shares the first address, where none of its ports is taken there.
pub(super) fn reconcile(tx: &mut Tx<'_>, context: &Context<'_>, settings: &Settings) {
    let (Some(services), Some(gateways)) = (Kind::named("Service"), Kind::named("Gateway")) else {
        return;
    };
    let given = |object: &Value| -> Vec<IpAddr> {
        let name = format!("{}/{}", object::namespace(object), object::name(object));
        settings.load_balancers.iter().filter(|(of, _)| *of == name).map(|(_, address)| *address).collect()
    };
    let shared = settings.load_balancers.first().map(|(_, address)| *address);
    let balanced = |service: &&Arc<Value>| object::text(service, "/spec/type") == "LoadBalancer";
    let mut balanced: Vec<Arc<Value>> = tx.list(services, None).iter().filter(balanced).cloned().collect();
    // A Service that was given an address does not lose a port of it to another one.
    balanced.sort_by_key(|service| given(service).is_empty());
    let mut taken = BTreeSet::new();
    for stored in balanced {
        let mut addresses = given(&stored);
        let mine: BTreeSet<u64> = ports(&stored).collect();
        if addresses.is_empty() && taken.is_disjoint(&mine) {
            addresses.extend(shared);
        }
        if addresses.iter().any(|address| Some(*address) == shared) {
            taken.extend(mine);
        }
        let ingress: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let mut next = Value::clone(&stored);
        next["status"]["loadBalancer"] =
            if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) };
        tx.put(&key_of(services, &stored), next);
    }
    let all = tx.list(services, None);
    let served = |gateway: &Arc<Value>| SERVED.contains(&object::text(gateway, "/spec/gatewayClassName"));
    for stored in tx.list(gateways, None).into_iter().filter(|gateway| !served(gateway)) {
        let mut addresses = given(&stored);
        let of_gateway = |service: &&Arc<Value>| {
            object::label(service, GATEWAY_NAME) == Some(object::name(&stored))
                && object::namespace(service) == object::namespace(&stored)
        };
        if let Some(service) = all.iter().find(of_gateway).filter(|_| addresses.is_empty()) {
            let ingress = object::list(service, "/status/loadBalancer/ingress").iter();
            addresses.extend(ingress.filter_map(|one| object::text(one, "/ip").parse::<IpAddr>().ok()));
        }
        let mut next = Value::clone(&stored);
        gateway_status(&mut next, &addresses, &time(context.now));
        tx.put(&key_of(gateways, &stored), next);
    }
}

fn ports(service: &Value) -> impl Iterator<Item = u64> {
    object::list(service, "/spec/ports").iter().filter_map(|port| port["port"].as_u64())
}

fn gateway_status(gateway: &mut Value, given: &[IpAddr], now: &str) {
    let mut addresses: Vec<Value> = object::list(gateway, "/spec/addresses").to_vec();
    addresses.extend(given.iter().map(|ip| json!({"type": "IPAddress", "value": ip})));
    if addresses.is_empty() || object::list(gateway, "/status/addresses") == addresses {
        return;
    }
    gateway["status"]["addresses"] = Value::Array(addresses);
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": now,
            "observedGeneration": gateway["metadata"]["generation"]})
    };
    let conditions = [condition("Accepted"), condition("Programmed")];
    gateway["status"]["conditions"] = json!(conditions);
}
