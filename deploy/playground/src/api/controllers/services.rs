//! External addresses: of LoadBalancer services and of gateways.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::Settings;
use crate::api::store::{Tx, key_of};
use crate::api::text::time;
use crate::api::verbs::Context;
use crate::manifest::{Kind, object};

/// Publishes the addresses that were given to the server, and a gateway's own `spec.addresses`.
pub(super) fn reconcile(tx: &mut Tx<'_>, context: &Context<'_>, settings: &Settings) {
    let given = |object: &Value| -> Vec<IpAddr> {
        let name = format!("{}/{}", object::namespace(object), object::name(object));
        settings.load_balancers.iter().filter(|(of, _)| *of == name).map(|(_, address)| *address).collect()
    };
    for (kind, services) in [("Service", true), ("Gateway", false)] {
        let Some(kind) = Kind::named(kind) else {
            continue;
        };
        for stored in tx.list(kind, None) {
            let mut next = Value::clone(&stored);
            let addresses = given(&stored);
            if services {
                if object::text(&stored, "/spec/type") == "LoadBalancer" && !addresses.is_empty() {
                    let ingress: Vec<Value> =
                        addresses.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
                    next["status"]["loadBalancer"] = json!({"ingress": ingress});
                }
            } else {
                gateway_status(&mut next, &addresses, &time(context.now));
            }
            tx.put(&key_of(kind, &stored), next);
        }
    }
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
