//! The stand-in for Istio's gateway controller: from a Gateway of class `istio-east-west` or `istio` to the service
//! account, the LoadBalancer Service and the Deployment that make it work. Pure.

use serde_json::{Value, json};

use crate::dir::Dir;
use crate::plan::Cluster;
use playground_k8s::manifest::object;

use super::{mesh_env, mesh_pod, path};

/// The door of a network.
const EAST_WEST: &str = "istio-east-west";
/// A gateway for clients outside of the mesh; here only with plain TCP listeners.
const PLAIN: &str = "istio";
/// TLS passthrough beside HBONE: control plane, webhooks, services by SNI.
const PASSTHROUGH: [(&str, u16); 3] = [("tls-istiod", 15012), ("tls-webhook", 15017), ("tls", 15443)];

/// Where a gateway is to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatewayContext<'a> {
    pub(crate) dir: &'a Dir,
    pub(crate) cluster: &'a Cluster,
}

/// The objects of a Gateway; none for other classes and kinds. What it listens for, it reads from its object itself.
pub(crate) fn expand(place: GatewayContext<'_>, gateway: &Value) -> Vec<Value> {
    let class = object::text(gateway, "/spec/gatewayClassName");
    if object::text(gateway, "/kind") != "Gateway" || ![EAST_WEST, PLAIN].contains(&class) {
        return Vec::new();
    }
    let gateway_name = object::name(gateway);
    let name = if class == PLAIN { format!("{gateway_name}-{PLAIN}") } else { gateway_name.to_owned() };
    let manager = if class == PLAIN { "istio.io-gateway-controller" } else { "istio.io-eastwest-controller" };
    let labels = json!({
        "gateway.networking.k8s.io/gateway-name": gateway_name,
        "gateway.istio.io/managed": manager,
        "istio.io/dataplane-mode": "none",
        "topology.istio.io/network": place.cluster.name,
    });
    let meta = json!({"namespace": object::namespace(gateway), "name": name, "labels": labels});
    let selector = json!({"gateway.networking.k8s.io/gateway-name": gateway_name});
    let pod = pod(place, gateway, &name);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"type": "LoadBalancer", "selector": selector, "ports": ports(gateway, class)},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {
                "replicas": 1, "selector": {"matchLabels": selector},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }),
    ]
}

/// The Gateway's listeners, and what every east-west gateway has beside them.
fn ports(gateway: &Value, class: &str) -> Vec<Value> {
    let listeners = object::list(gateway, "/spec/listeners").iter();
    let listeners = listeners.map(|listener| json!({"name": listener["name"], "port": listener["port"]}));
    if class == PLAIN {
        return listeners.collect();
    }
    let mut ports = vec![json!({"name": "status-port", "port": 15021})];
    ports.extend(listeners);
    for (name, port) in PASSTHROUGH {
        if !ports.iter().any(|known| known["port"] == port) {
            ports.push(json!({"name": name, "port": port}));
        }
    }
    ports
}

fn pod(place: GatewayContext<'_>, gateway: &Value, account: &str) -> Value {
    let GatewayContext { dir, cluster } = place;
    let mut env = mesh_env(&cluster.name);
    env.push(json!({"name": "GATEWAY_NAME", "value": object::name(gateway)}));
    env.push(json!({"name": "KUBECONFIG", "value": path(dir.kubeconfig(&cluster.name))}));
    mesh_pod(account, &["gateway"], &env)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, Topology};

    fn expanded(class: &str, listener: &Value) -> Vec<Value> {
        let plan = Plan::new(Topology::MultiPrimary);
        let gateway = json!({
            "kind": "Gateway", "metadata": {"namespace": "istio-system", "name": "gw"},
            "spec": {"gatewayClassName": class, "listeners": [listener]},
        });
        let dir = Dir::at("/w".into());
        expand(GatewayContext { dir: &dir, cluster: &plan.clusters[0] }, &gateway)
    }

    #[test]
    fn a_plain_gateway_carries_its_own_listeners_only() {
        let objects = expanded("istio", &json!({"name": "tcp", "port": 30443, "protocol": "TCP"}));
        assert_eq!(object::name(&objects[1]), "gw-istio");
        assert_eq!(object::list(&objects[1], "/spec/ports"), [json!({"name": "tcp", "port": 30443})]);
    }

    #[test]
    fn a_gateway_becomes_account_service_and_deployment() {
        let objects = expanded("istio-east-west", &json!({"name": "mesh", "port": 15008}));
        let kinds: Vec<_> = objects.iter().map(|object| object::text(object, "/kind")).collect();
        assert_eq!(kinds, ["ServiceAccount", "Service", "Deployment"]);
        let ports: Vec<_> =
            object::list(&objects[1], "/spec/ports").iter().map(|port| port["port"].clone()).collect();
        assert_eq!(ports, [15021, 15008, 15012, 15017, 15443]);
        let env = object::list(&objects[2], "/spec/template/spec/containers/0/env");
        assert!(env.iter().any(|one| one["name"] == "GATEWAY_NAME" && one["value"] == "gw"), "{env:?}");
        assert!(env.iter().all(|one| !one["name"].as_str().unwrap().ends_with("_ROUTES")), "{env:?}");
    }

    #[test]
    fn other_classes_are_somebody_elses() {
        assert!(expanded("istio-waypoint", &json!({})).is_empty());
    }
}
