//! Which addresses stand behind a Service: ready pods that its selector matches, or the EndpointSlices of a Service
//! without one. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::Value;

use playground_k8s::manifest::object;

/// Protocols with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// One port of a Service and what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) backends: BTreeSet<SocketAddr>,
}

/// The ports of a Service.
pub(crate) fn ports<'a>(
    service: &Value,
    pods: impl Iterator<Item = &'a Value> + Clone,
    slices: impl Iterator<Item = &'a Value> + Clone,
) -> Vec<Port> {
    let ports = object::list(service, "/spec/ports").iter().filter_map(|port| {
        let protocol = match object::text(port, "/protocol") {
            "" | "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => return None,
        };
        let number = number(&port["port"])?;
        let behind_pods = ready_pods(service, pods.clone())
            .filter_map(|pod| Some(SocketAddr::new(address(pod)?, target_port(port, pod, number)?)));
        let behind_slices = slices.clone().flat_map(|slice| sliced(service, port, slice));
        let backends = behind_pods.chain(behind_slices).collect();
        Some(Port { protocol, port: number, backends })
    });
    ports.collect()
}

/// The addresses of the ready pods that a Service's selector matches; none without a selector.
pub(crate) fn pod_addresses<'a>(service: &Value, pods: impl Iterator<Item = &'a Value>) -> BTreeSet<IpAddr> {
    ready_pods(service, pods).filter_map(address).collect()
}

/// The Service's own addresses: its ClusterIP, and the LoadBalancer addresses among `external`.
pub(crate) fn addresses(service: &Value, external: &[Ipv4Addr]) -> BTreeSet<Ipv4Addr> {
    let own = object::text(service, "/spec/clusterIP").parse().ok();
    let balanced = object::list(service, "/status/loadBalancer/ingress").iter();
    let balanced = balanced.filter_map(|ingress| object::text(ingress, "/ip").parse().ok());
    own.into_iter().chain(balanced.filter(|ip| external.contains(ip))).collect()
}

fn ready_pods<'a>(service: &Value, pods: impl Iterator<Item = &'a Value>) -> impl Iterator<Item = &'a Value> {
    let selector = object::string_map(service, "/spec/selector");
    let even_unready = service["spec"]["publishNotReadyAddresses"] == true;
    pods.filter(move |pod| {
        !selector.is_empty()
            && object::namespace(pod) == object::namespace(service)
            && object::has_labels(pod, &selector)
            && !object::is_deleting(pod)
            && (even_unready || object::has_condition(pod, "Ready"))
    })
}

fn address(pod: &Value) -> Option<IpAddr> {
    object::text(pod, "/status/podIP").parse().ok()
}

fn target_port(port: &Value, pod: &Value, default: u16) -> Option<u16> {
    match &port["targetPort"] {
        Value::Null => Some(default),
        Value::String(name) => {
            let containers = object::list(pod, "/spec/containers").iter();
            let mut named = containers.flat_map(|container| object::list(container, "/ports"));
            let found = named.find(|port| object::text(port, "/name") == name)?;
            number(&found["containerPort"])
        }
        target => number(target),
    }
}

/// What a slice adds behind a port of a Service. Ports belong together by name.
fn sliced(service: &Value, port: &Value, slice: &Value) -> Vec<SocketAddr> {
    let of = object::label(slice, "kubernetes.io/service-name");
    if of != Some(object::name(service)) || object::namespace(slice) != object::namespace(service) {
        return Vec::new();
    }
    let name = object::text(port, "/name");
    let target = object::list(slice, "/ports").iter().find(|target| object::text(target, "/name") == name);
    let Some(target) = target.and_then(|target| number(&target["port"])) else { return Vec::new() };
    let ready =
        object::list(slice, "/endpoints").iter().filter(|endpoint| endpoint["conditions"]["ready"] != false);
    let addresses = ready.flat_map(|endpoint| object::texts(endpoint, "/addresses"));
    addresses.filter_map(|ip| Some(SocketAddr::new(ip.parse().ok()?, target))).collect()
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(ip: &str, ready: bool) -> Value {
        json!({
            "metadata": {"namespace": "n", "name": ip, "labels": {"app": "x"}},
            "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 5000}]}]},
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        })
    }

    fn service(spec: Value) -> Value {
        json!({"metadata": {"namespace": "n", "name": "s"}, "spec": spec})
    }

    fn shown(service: &Value, pods: &[Value], slices: &[Value]) -> Vec<String> {
        let ports = ports(service, pods.iter(), slices.iter());
        let of =
            |port: &Port| port.backends.iter().map(|to| format!("{}>{to}", port.port)).collect::<Vec<_>>();
        ports.iter().flat_map(of).collect()
    }

    #[test]
    fn ready_pods_stand_behind_named_and_numbered_ports() {
        let pods = [pod("10.0.0.1", true), pod("10.0.0.2", false), pod("10.0.0.3", true)];
        let ports = json!([{"port": 80, "targetPort": "http"}, {"port": 81}]);
        let service = service(json!({"selector": {"app": "x"}, "ports": ports}));
        let want = ["80>10.0.0.1:5000", "80>10.0.0.3:5000", "81>10.0.0.1:81", "81>10.0.0.3:81"];
        assert_eq!(shown(&service, &pods, &[]), want);
        assert_eq!(pod_addresses(&service, pods.iter()).len(), 2);
    }

    #[test]
    fn slices_stand_behind_a_service_without_selector() {
        let slice = json!({
            "metadata": {"namespace": "n", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"}},
            "ports": [{"name": "tls", "port": 15012}],
            "endpoints": [{"addresses": ["192.168.97.248"]}, {"addresses": ["1.1.1.1"], "conditions": {"ready": false}}],
        });
        let service =
            service(json!({"ports": [{"name": "tls", "port": 15012}, {"name": "other", "port": 1}]}));
        assert_eq!(shown(&service, &[pod("10.0.0.1", true)], &[slice]), ["15012>192.168.97.248:15012"]);
    }

    #[test]
    fn only_announced_balancer_addresses_count() {
        let mut service = service(json!({"clusterIP": "172.21.0.9"}));
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.168.97.248"}]}});
        let announced: Ipv4Addr = "192.168.97.248".parse().unwrap();
        assert_eq!(addresses(&service, &[]).len(), 1);
        assert_eq!(addresses(&service, &[announced]).len(), 2);
        service["spec"]["clusterIP"] = "None".into();
        assert_eq!(addresses(&service, &[]).len(), 0);
    }
}
