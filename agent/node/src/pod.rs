//! A pod as the node role sees it, and what its annotations ask for. Plain values; knows neither the API client nor the
//! kernel.

use std::net::IpAddr;

use isthmus_model::name::PodUid;
use isthmus_proto::enroll::{Labels, PodFacts, REDIRECTION};

/// Leaves inbound traffic alone ("ingress mode").
const BYPASS_INBOUND: &str = "ambient.istio.io/bypass-inbound-capture";
/// Overrides whether DNS is captured.
const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// Interfaces whose traffic counts as the pod's own outbound traffic.
const REROUTE: &str = "istio.io/reroute-virtual-interfaces";

/// What the API server says about a pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its UID.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
    /// Its addresses; none until its sandbox is made.
    pub ips: Vec<IpAddr>,
    /// Whether all its containers have ended for good.
    pub terminated: bool,
    /// Whether its deletion has been asked for.
    pub deleting: bool,
}

/// How far the redirection of a pod has come, as its annotation says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirection {
    /// Rules are in and the agent serves it.
    Enabled,
    /// Rules are in, the agent does not serve it yet.
    Pending,
}

/// What is to be captured in a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// DNS queries.
    pub dns: bool,
    /// IPv6 too.
    pub ipv6: bool,
    /// Inbound plaintext; off in "ingress mode".
    pub inbound: bool,
    /// Interfaces whose traffic counts as outbound.
    pub virtual_interfaces: Vec<String>,
}

// === impl Pod ===

impl Pod {
    /// What the enrolment rule looks at.
    #[must_use]
    pub fn facts(&self) -> PodFacts<'_> {
        PodFacts {
            namespace: &self.namespace,
            labels: &self.labels,
            annotations: &self.annotations,
            host_network: self.host_network,
        }
    }

    /// What its annotation says; an unknown value is as good as none.
    #[must_use]
    pub fn redirection(&self) -> Option<Redirection> {
        match self.annotations.get(REDIRECTION).map(String::as_str) {
            Some("enabled") => Some(Redirection::Enabled),
            Some("pending") => Some(Redirection::Pending),
            _ => None,
        }
    }

    /// What to capture, from the node's defaults and the pod's annotations.
    #[must_use]
    pub fn capture(&self, dns: bool, ipv6: bool) -> Capture {
        let virtual_interfaces = self.annotations.get(REROUTE).map_or_else(Vec::new, |list| {
            list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        });
        Capture {
            dns: self.switch(DNS_CAPTURE).unwrap_or(dns),
            ipv6,
            inbound: !self.switch(BYPASS_INBOUND).unwrap_or(false),
            virtual_interfaces,
        }
    }

    fn switch(&self, annotation: &str) -> Option<bool> {
        let text = self.annotations.get(annotation)?;
        // Everything that Istio's parser takes for a boolean.
        match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => {
                tracing::warn!(pod = %self, annotation, value = %text, "ignoring an annotation that is no boolean");
                None
            }
        }
    }
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
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
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A pod of `sample` with one address, in the mesh by its own label.
    pub(crate) fn pod(name: &str, ip: &str) -> Pod {
        Pod {
            uid: format!("uid-{name}").into(),
            namespace: "sample".to_owned(),
            name: name.to_owned(),
            service_account: "default".to_owned(),
            labels: [("istio.io/dataplane-mode".to_owned(), "ambient".to_owned())].into(),
            annotations: Labels::new(),
            host_network: false,
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
        let default = Capture { dns: true, ipv6: true, inbound: true, virtual_interfaces: Vec::new() };
        assert_eq!(with(&[]), default);
        assert_eq!(with(&[(DNS_CAPTURE, "false")]), Capture { dns: false, ..default.clone() });
        assert_eq!(with(&[(BYPASS_INBOUND, "true")]), Capture { inbound: false, ..default.clone() });
        assert_eq!(with(&[(DNS_CAPTURE, "maybe"), (BYPASS_INBOUND, "")]), default);
        let names = vec!["vnet0".to_owned(), "docker0".to_owned()];
        assert_eq!(with(&[(REROUTE, "vnet0, docker0,")]), Capture { virtual_interfaces: names, ..default });
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
