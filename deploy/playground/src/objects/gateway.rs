//! The stand-in for Istio's gateway controller: from a Gateway of class `istio-east-west` or `istio` to the service
//! account, the LoadBalancer Service and the Deployment that make it work. Pure.

use serde_json::{Value, json};

use crate::dir::Dir;
use crate::plan::{Cluster, Plan};
use playground_k8s::manifest::object;

use super::{ISTIOD, mesh_env, mesh_pod, path};

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
    pub(crate) plan: &'a Plan,
    pub(crate) cluster: &'a Cluster,
    /// Address of the cluster's control plane.
    pub(crate) istiod: Option<&'a str>,
}

/// The objects of a Gateway, with the routes among `all`; none for other classes and kinds.
pub(crate) fn expand(place: GatewayContext<'_>, gateway: &Value, all: &[Value]) -> Vec<Value> {
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
    let pod = pod(place, gateway, &name, all);
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

fn pod(place: GatewayContext<'_>, gateway: &Value, account: &str, all: &[Value]) -> Value {
    let GatewayContext { dir, plan, cluster, istiod } = place;
    let mut env = mesh_env(&cluster.name);
    env.push(json!({"name": "GATEWAY_NAME", "value": object::name(gateway)}));
    env.push(json!({"name": "KUBECONFIG", "value": path(dir.kubeconfig(&cluster.name))}));
    let is_door = object::text(gateway, "/spec/gatewayClassName") == EAST_WEST;
    if let Some(istiod) = istiod.filter(|_| is_door && plan.primary_of(cluster).name == cluster.name) {
        let route = format!("{ISTIOD}=istiod.istio-system.svc@{istiod}:{ISTIOD}");
        env.push(json!({"name": "GATEWAY_SNI_ROUTES", "value": route}));
    }
    let routes = tcp_routes(gateway, all);
    if !routes.is_empty() {
        env.push(json!({"name": "GATEWAY_TCP_ROUTES", "value": routes.join(",")}));
    }
    mesh_pod(account, &["gateway"], &env)
}

/// `<port>=<hostname>:<port>` for each TCP listener, by the first backend of the route that is attached to it.
fn tcp_routes(gateway: &Value, all: &[Value]) -> Vec<String> {
    let is_attached = |route: &&Value, listener: &Value| {
        let parents = object::list(route, "/spec/parentRefs").iter();
        object::text(route, "/kind") == "TCPRoute"
            && object::namespace(route) == object::namespace(gateway)
            && parents.into_iter().any(|parent| {
                let section = object::text(parent, "/sectionName");
                object::text(parent, "/name") == object::name(gateway)
                    && (section.is_empty() || section == object::text(listener, "/name"))
            })
    };
    let listeners = object::list(gateway, "/spec/listeners").iter();
    let tcp = listeners.filter(|listener| object::text(listener, "/protocol") == "TCP");
    let route = |listener: &Value| {
        let route = all.iter().find(|route| is_attached(route, listener))?;
        let backend = route.pointer("/spec/rules/0/backendRefs/0")?;
        let (name, namespace) = (object::text(backend, "/name"), object::namespace(route));
        Some(format!("{}={name}.{namespace}.svc.cluster.local:{}", listener["port"], backend["port"]))
    };
    tcp.filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Topology;

    fn expanded(class: &str, listener: &Value, all: &[Value]) -> Vec<Value> {
        let plan = Plan::new(Topology::MultiPrimary);
        let gateway = json!({
            "kind": "Gateway", "metadata": {"namespace": "istio-system", "name": "gw"},
            "spec": {"gatewayClassName": class, "listeners": [listener]},
        });
        let dir = Dir::at("/w".into());
        let place =
            GatewayContext { dir: &dir, plan: &plan, cluster: &plan.clusters[0], istiod: Some("172.21.0.9") };
        expand(place, &gateway, all)
    }

    fn variable<'a>(objects: &'a [Value], name: &str) -> Option<&'a str> {
        let env = object::list(&objects[2], "/spec/template/spec/containers/0/env");
        env.iter().find(|variable| variable["name"] == name)?["value"].as_str()
    }

    #[test]
    fn a_plain_gateway_carries_its_listeners_by_their_routes() {
        let route = json!({
            "kind": "TCPRoute", "metadata": {"namespace": "istio-system", "name": "r"},
            "spec": {
                "parentRefs": [{"name": "gw", "sectionName": "tcp"}],
                "rules": [{"backendRefs": [{"name": "hello", "port": 8080}]}],
            },
        });
        let listener = json!({"name": "tcp", "port": 30443, "protocol": "TCP"});
        let objects = expanded("istio", &listener, &[route]);
        assert_eq!(object::name(&objects[1]), "gw-istio");
        assert_eq!(object::list(&objects[1], "/spec/ports"), [json!({"name": "tcp", "port": 30443})]);
        let routes = variable(&objects, "GATEWAY_TCP_ROUTES");
        assert_eq!(routes, Some("30443=hello.istio-system.svc.cluster.local:8080"));
        assert_eq!(variable(&objects, "GATEWAY_SNI_ROUTES"), None);
    }

    #[test]
    fn a_gateway_becomes_account_service_and_deployment() {
        let objects = expanded("istio-east-west", &json!({"name": "mesh", "port": 15008}), &[]);
        let kinds: Vec<_> = objects.iter().map(|object| object::text(object, "/kind")).collect();
        assert_eq!(kinds, ["ServiceAccount", "Service", "Deployment"]);
        let ports: Vec<_> =
            object::list(&objects[1], "/spec/ports").iter().map(|port| port["port"].clone()).collect();
        assert_eq!(ports, [15021, 15008, 15012, 15017, 15443]);
        assert_eq!(
            variable(&objects, "GATEWAY_SNI_ROUTES"),
            Some("15012=istiod.istio-system.svc@172.21.0.9:15012")
        );
    }

    #[test]
    fn other_classes_are_somebody_elses() {
        assert!(expanded("istio-waypoint", &json!({}), &[]).is_empty());
    }
}
