//! The stand-in for Istio's gateway controller: from a Gateway of class `istio-east-west` to the service account, the
//! LoadBalancer Service and the Deployment that make it work.

use serde_json::{Value, json};

use crate::dir::Dir;
use crate::manifest::object;
use crate::plan::{Cluster, Plan};

use super::{ISTIOD, mesh_env, mesh_pod, path};

/// Gateways of this class are ours.
const CLASS: &str = "istio-east-west";
/// TLS passthrough beside HBONE: control plane, webhooks, services by SNI.
const PASSTHROUGH: [(&str, u16); 3] = [("tls-istiod", 15012), ("tls-webhook", 15017), ("tls", 15443)];

/// The objects of an east-west Gateway; none for other classes and kinds.
pub(crate) fn expand(
    dir: &Dir,
    plan: &Plan,
    cluster: &Cluster,
    gateway: &Value,
    istiod: Option<&str>,
) -> Vec<Value> {
    let ours = object::text(gateway, "/kind") == "Gateway"
        && object::text(gateway, "/spec/gatewayClassName") == CLASS;
    if !ours {
        return Vec::new();
    }
    let (namespace, name) = (object::namespace(gateway), object::name(gateway));
    let labels = json!({
        "gateway.networking.k8s.io/gateway-name": name,
        "gateway.istio.io/managed": "istio.io-eastwest-controller",
        "istio.io/dataplane-mode": "none",
        "topology.istio.io/network": cluster.name,
    });
    let meta = json!({"namespace": namespace, "name": name, "labels": labels});
    let selector = json!({"gateway.networking.k8s.io/gateway-name": name});
    let pod = pod(dir, plan, cluster, gateway, istiod);
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"type": "LoadBalancer", "selector": selector, "ports": ports(gateway)},
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

/// The Gateway's listeners and what every east-west gateway has beside them.
fn ports(gateway: &Value) -> Vec<Value> {
    let mut ports = vec![json!({"name": "status-port", "port": 15021})];
    for listener in object::list(gateway, "/spec/listeners") {
        ports.push(json!({"name": listener["name"], "port": listener["port"]}));
    }
    for (name, port) in PASSTHROUGH {
        if !ports.iter().any(|known| known["port"] == port) {
            ports.push(json!({"name": name, "port": port}));
        }
    }
    ports
}

fn pod(dir: &Dir, plan: &Plan, cluster: &Cluster, gateway: &Value, istiod: Option<&str>) -> Value {
    let mut env = mesh_env(&cluster.name);
    env.push(json!({"name": "GATEWAY_NAME", "value": object::name(gateway)}));
    env.push(json!({"name": "KUBECONFIG", "value": path(dir.kubeconfig(&cluster.name))}));
    if let Some(istiod) = istiod.filter(|_| plan.primary_of(cluster).name == cluster.name) {
        let route = format!("{ISTIOD}=istiod.istio-system.svc@{istiod}:{ISTIOD}");
        env.push(json!({"name": "GATEWAY_SNI_ROUTES", "value": route}));
    }
    mesh_pod(object::name(gateway), &["gateway"], &env)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Topology;

    fn expanded(class: &str) -> Vec<Value> {
        let plan = Plan::new(Topology::MultiPrimary);
        let gateway = json!({
            "kind": "Gateway", "metadata": {"namespace": "istio-system", "name": "gw"},
            "spec": {"gatewayClassName": class, "listeners": [{"name": "mesh", "port": 15008}]},
        });
        expand(&Dir::at("/w".into()), &plan, &plan.clusters[0], &gateway, Some("172.21.0.9"))
    }

    #[test]
    fn a_gateway_becomes_account_service_and_deployment() {
        let objects = expanded("istio-east-west");
        let kinds: Vec<_> = objects.iter().map(|object| object::text(object, "/kind")).collect();
        assert_eq!(kinds, ["ServiceAccount", "Service", "Deployment"]);
        let ports: Vec<_> =
            object::list(&objects[1], "/spec/ports").iter().map(|port| port["port"].clone()).collect();
        assert_eq!(ports, [15021, 15008, 15012, 15017, 15443]);
        let env = object::list(&objects[2], "/spec/template/spec/containers/0/env");
        let routes = env.iter().find(|variable| variable["name"] == "GATEWAY_SNI_ROUTES").unwrap();
        assert_eq!(routes["value"], "15012=istiod.istio-system.svc@172.21.0.9:15012");
    }

    #[test]
    fn other_classes_are_somebody_elses() {
        assert!(expanded("istio-waypoint").is_empty());
    }
}
