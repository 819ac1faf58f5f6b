//! The ports on which the kubelet itself connects to a pod: of its probes and of the hooks of its containers' lives.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The ports of a pod, without repetition. Container objects cannot change them later.
pub(super) fn of(spec: &PodSpec) -> Vec<u16> {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.flat_map(of_container).collect::<BTreeSet<_>>().into_iter().collect()
}

fn of_container(container: &Container) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut add = |port: Option<&IntOrString>| ports.extend(port.and_then(|port| number(container, port)));
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    for probe in probes.into_iter().flatten() {
        add(probe.http_get.as_ref().map(|action| &action.port));
        add(probe.tcp_socket.as_ref().map(|action| &action.port));
        add(probe.grpc.as_ref().map(|action| IntOrString::Int(action.port)).as_ref());
    }
    let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    for hook in hooks.flatten() {
        add(hook.http_get.as_ref().map(|action| &action.port));
        add(hook.tcp_socket.as_ref().map(|action| &action.port));
    }
    ports
}

/// A port may be the name of one of the container's.
fn number(container: &Container, port: &IntOrString) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut named = container.ports.iter().flatten();
            let known = named.find(|port| port.name.as_ref() == Some(name)).map(|port| port.container_port);
            known.or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_all_probes_and_hooks_are_found() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{
                "name": "app", "ports": [{"name": "web", "containerPort": 8080}],
                "livenessProbe": {"httpGet": {"port": "web"}},
                "readinessProbe": {"tcpSocket": {"port": 9000}},
                "startupProbe": {"grpc": {"port": 9001}},
                "lifecycle": {"preStop": {"httpGet": {"port": 9002}}, "postStart": {"exec": {"command": ["x"]}}},
            }, {"name": "other", "livenessProbe": {"httpGet": {"port": "unknown"}}}],
            "initContainers": [{"name": "sidecar", "readinessProbe": {"httpGet": {"port": 9003}}}],
        }))
        .unwrap();
        assert_eq!(of(&spec), [8080, 9000, 9001, 9002, 9003]);
    }
}
