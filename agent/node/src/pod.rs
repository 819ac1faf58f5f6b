//! A pod of this node as enrolment needs it, and what its annotations configure. Plain values; it must not know the API
//! client or the kernel.

use std::net::IpAddr;

use isthmus_model::PodRef;
use isthmus_proto::enroll::{Labels, PodFacts, REDIRECTION};

/// Turns inbound capture off, for ingress gateways that accept connections from outside the mesh ("ingress mode").
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Overrides the node's default of DNS capture.
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Interfaces of nested workloads (virtual machines, containers in the pod) whose traffic counts as the pod's outbound
/// traffic.
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";

/// A Pod object of this node, reduced to what enrolment reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Which pod.
    pub pod: PodRef,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations`.
    pub annotations: Labels,
    /// `spec.hostNetwork`: the pod shares the node's network namespace.
    pub host_network: bool,
    /// `spec.runtimeClassName`.
    pub runtime_class: Option<String>,
    /// The ports on which the kubelet connects to it: of probes and hooks.
    pub probe_ports: Vec<u16>,
    /// The ids of its containers, as the runtime names them.
    pub containers: Vec<String>,
    /// `status.podIPs`; empty until the kubelet has reported the sandbox's addresses.
    pub ips: Vec<IpAddr>,
    /// Whether `status.phase` is `Succeeded` or `Failed`: all containers have ended for good.
    pub terminated: bool,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
}

/// Values of the annotation `ambient.istio.io/redirection`, by which istiod and istioctl learn that a pod is enrolled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirection {
    /// The rules are in place and the agent serves the pod.
    Enabled,
    /// The rules are in place, and it is not proved yet that the pod is captured by an agent that serves it.
    Pending,
    /// The pod cannot be captured and runs out of the mesh.
    NotCaptured,
}

/// What of a pod's traffic is redirected to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaptureConfig {
    /// Redirect DNS queries to the DNS proxy.
    pub dns: bool,
    /// Write the rules for IPv6 as well as for IPv4.
    pub ipv6: bool,
    /// Redirect inbound plaintext; off in "ingress mode".
    pub inbound: bool,
    /// Interfaces whose traffic counts as the pod's outbound traffic.
    pub virtual_interfaces: Vec<String>,
    /// The ports on which the kubelet's probes are let through.
    pub probe_ports: Vec<u16>,
}

// === impl Pod ===

impl Pod {
    /// The input of the enrolment rule that this role shares with the CNI plugin.
    #[must_use]
    pub fn facts(&self) -> PodFacts<'_> {
        PodFacts {
            namespace: self.pod.namespace.as_str(),
            labels: &self.labels,
            annotations: &self.annotations,
            host_network: self.host_network,
        }
    }

    /// The value of the redirection annotation; an unknown value counts as none.
    #[must_use]
    pub fn redirection(&self) -> Option<Redirection> {
        match self.annotations.get(REDIRECTION).map(String::as_str) {
            Some("enabled") => Some(Redirection::Enabled),
            Some("pending") => Some(Redirection::Pending),
            Some("not-captured") => Some(Redirection::NotCaptured),
            _ => None,
        }
    }

    /// What to redirect: the node's defaults, overridden by the pod's annotations.
    #[must_use]
    pub fn capture(&self, dns: bool, ipv6: bool) -> CaptureConfig {
        let virtual_interfaces = self.annotations.get(REROUTE).map_or_else(Vec::new, |list| {
            list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        });
        CaptureConfig {
            dns: self.boolean(DNS_CAPTURE).unwrap_or(dns),
            ipv6,
            inbound: !self.boolean(BYPASS_INBOUND).unwrap_or(false),
            virtual_interfaces,
            probe_ports: self.probe_ports.clone(),
        }
    }

    fn boolean(&self, annotation: &str) -> Option<bool> {
        let text = self.annotations.get(annotation)?;
        // The spellings that Go's strconv.ParseBool, and so istio-cni, accepts.
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => {
                tracing::warn!(pod = %self, annotation, value = %text, "annotation ignored: its value is not a boolean");
                None
            }
        }
    }
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.pod, f)
    }
}

// === impl Redirection ===

impl Redirection {
    /// The annotation's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Pending => "pending",
            Self::NotCaptured => "not-captured",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod of the namespace `sample` with this address, if any, selected by its own label.
    pub(crate) fn pod(name: &str, ip: &str) -> Pod {
        Pod {
            pod: PodRef {
                uid: format!("uid-{name}").into(),
                namespace: "sample".into(),
                name: name.into(),
                service_account: "default".into(),
            },
            labels: [("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())].into(),
            annotations: Labels::new(),
            host_network: false,
            runtime_class: None,
            probe_ports: vec![8080],
            containers: Vec::new(),
            ips: if ip.is_empty() { Vec::new() } else { vec![ip.parse().unwrap()] },
            terminated: false,
            deleting: false,
        }
    }

    #[test]
    fn annotations_override_the_nodes_defaults() {
        let with = |pairs: &[(&str, &str)]| {
            let mut pod = pod("a", "");
            pod.annotations.extend(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
            pod.capture(true, true)
        };
        let default = CaptureConfig {
            dns: true,
            ipv6: true,
            inbound: true,
            virtual_interfaces: Vec::new(),
            probe_ports: vec![8080],
        };
        assert_eq!(with(&[]), default);
        assert_eq!(with(&[(DNS_CAPTURE, "false")]), CaptureConfig { dns: false, ..default.clone() });
        assert_eq!(with(&[(BYPASS_INBOUND, "true")]), CaptureConfig { inbound: false, ..default.clone() });
        assert_eq!(with(&[(DNS_CAPTURE, "maybe"), (BYPASS_INBOUND, "")]), default);
        let names = vec!["vnet0".to_owned(), "docker0".to_owned()];
        assert_eq!(
            with(&[(REROUTE, "vnet0, docker0,")]),
            CaptureConfig { virtual_interfaces: names, ..default }
        );
    }

    #[test]
    fn the_redirection_annotation_is_read() {
        let mut pod = pod("a", "");
        for (value, want) in [
            ("enabled", Some(Redirection::Enabled)),
            ("pending", Some(Redirection::Pending)),
            ("disabled", None),
        ] {
            pod.annotations.insert(REDIRECTION.to_owned(), value.to_owned());
            assert_eq!(pod.redirection(), want);
        }
    }
}
