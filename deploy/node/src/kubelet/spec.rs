//! What a kubelet reads of a Pod object, with Kubernetes' defaults for what the object does not say. Pure: it knows no
//! process and no node; the addresses that variables refer to are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The grace period of a pod that asks for none.
const GRACE_SECONDS: i64 = 30;

/// Fields of a Pod, as a kubelet understands them.
pub(super) trait PodExt {
    /// Its name.
    fn name(&self) -> &str;
    /// Its namespace.
    fn namespace(&self) -> &str;
    /// Its uid.
    fn uid(&self) -> &str;
    /// Its containers.
    fn containers(&self) -> &[Container];
    /// Whether it runs in the node's own network namespace.
    fn is_host_network(&self) -> bool;
    /// The path of the object at the API server.
    fn path(&self) -> String;
    /// Whether it is being deleted.
    fn is_terminating(&self) -> bool;
    /// How long its programs may take to end.
    fn grace_period(&self) -> Duration;
    /// The service account.
    fn service_account(&self) -> &str;
    /// A field by its path in the downward API; nothing when it is not supported or not there.
    fn field(&self, path: &str, ip: &str, host: &str) -> Option<String>;
}

/// Fields of a container, as a kubelet understands them.
pub(super) trait ContainerExt {
    /// A port by number or by name.
    fn port(&self, port: &IntOrString) -> Option<u16>;
    /// The variables, with `$(NAME)` of earlier ones filled in.
    ///
    /// # Errors
    /// The name of a variable whose source is not supported or not there.
    fn variables(&self, pod: &Pod, ip: &str, host: &str) -> Result<Vec<(String, String)>, String>;
}

// === impl Pod ===

impl PodExt for Pod {
    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    fn containers(&self) -> &[Container] {
        self.spec.as_ref().map_or(&[], |spec| &spec.containers)
    }

    fn is_host_network(&self) -> bool {
        self.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default()
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.namespace(), self.name())
    }

    fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    fn grace_period(&self) -> Duration {
        // The deletion's own period goes before that of the pod.
        let own = || self.spec.as_ref()?.termination_grace_period_seconds;
        let seconds = self.metadata.deletion_grace_period_seconds.or_else(own).unwrap_or(GRACE_SECONDS);
        Duration::from_secs(seconds.try_into().unwrap_or_default())
    }

    fn service_account(&self) -> &str {
        let account = self.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        account.filter(|account| !account.is_empty()).unwrap_or("default")
    }

    fn field(&self, path: &str, ip: &str, host: &str) -> Option<String> {
        let keyed = |map: Option<&BTreeMap<String, String>>, rest: &str| {
            map?.get(rest.strip_prefix("['")?.strip_suffix("']")?).cloned()
        };
        match path {
            "metadata.name" => Some(self.name().to_owned()),
            "metadata.namespace" => Some(self.namespace().to_owned()),
            "metadata.uid" => Some(self.uid().to_owned()),
            "spec.nodeName" => self.spec.as_ref()?.node_name.clone(),
            "spec.serviceAccountName" => Some(self.service_account().to_owned()),
            "status.podIP" => Some(ip.to_owned()),
            "status.hostIP" => Some(host.to_owned()),
            _ => match path.strip_prefix("metadata.labels") {
                Some(rest) => keyed(self.metadata.labels.as_ref(), rest),
                None => keyed(self.metadata.annotations.as_ref(), path.strip_prefix("metadata.annotations")?),
            },
        }
    }
}

// === impl Container ===

impl ContainerExt for Container {
    fn port(&self, port: &IntOrString) -> Option<u16> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => match name.parse() {
                Ok(number) => number,
                Err(_) => {
                    let mut ports = self.ports.iter().flatten();
                    ports.find(|port| port.name.as_ref() == Some(name))?.container_port
                }
            },
        };
        number.try_into().ok()
    }

    fn variables(&self, pod: &Pod, ip: &str, host: &str) -> Result<Vec<(String, String)>, String> {
        let mut known: Vec<(String, String)> = Vec::new();
        for variable in self.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), _) => expand(value, &known),
                (None, None) => String::new(),
                (None, Some(from)) => from
                    .field_ref
                    .as_ref()
                    .and_then(|field| pod.field(&field.field_path, ip, host))
                    .ok_or_else(|| format!("env {}: its valueFrom is not supported here", variable.name))?,
            };
            known.push((variable.name.clone(), value));
        }
        Ok(known)
    }
}

/// Fills in `$(NAME)`; unknown names stay as they are.
pub(super) fn expand(text: &str, known: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("$(") {
        out.push_str(before);
        let Some((name, tail)) = after.split_once(')') else {
            out.push_str("$(");
            rest = after;
            break;
        };
        match known.iter().rev().find(|(known, _)| known == name) {
            Some((_, value)) => out.push_str(value),
            None => out.push_str(&format!("$({name})")),
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(env: Value) -> Pod {
        let object = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": {"nodeName": "east-1", "containers": [
                {"name": "c", "image": "i", "env": env, "ports": [{"name": "http", "containerPort": 5000}]}]},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn variables_refer_to_the_pod_and_to_earlier_ones() {
        let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
        let pod = pod(json!([
            {"name": "NODE", "valueFrom": field("spec.nodeName")},
            {"name": "DIR", "value": "/x/$(NODE)/$(NONE)/y"},
            {"name": "APP", "valueFrom": field("metadata.labels['app']")},
            {"name": "IP", "valueFrom": field("status.podIP")},
        ]));
        let got = pod.containers()[0].variables(&pod, "10.0.0.5", "").unwrap();
        let values: Vec<_> = got.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["east-1", "/x/east-1/$(NONE)/y", "x", "10.0.0.5"]);
    }

    #[test]
    fn a_source_that_is_not_supported_is_named() {
        let pod = pod(json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]));
        let error = pod.containers()[0].variables(&pod, "", "").unwrap_err();
        assert_eq!(error, "env A: its valueFrom is not supported here");
    }

    #[test]
    fn ports_have_names() {
        let pod = pod(json!([]));
        let container = &pod.containers()[0];
        for (port, number) in [("http", Some(5000)), ("82", Some(82)), ("none", None)] {
            assert_eq!(container.port(&IntOrString::String(port.to_owned())), number, "{port}");
        }
        assert_eq!(container.port(&IntOrString::Int(81)), Some(81));
        assert_eq!(container.port(&IntOrString::Int(70_000)), None);
    }

    #[test]
    fn what_a_pod_does_not_say_has_kubernetes_defaults() {
        let silent: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        assert_eq!(silent.service_account(), "default");
        assert_eq!(silent.grace_period(), Duration::from_secs(30));
        assert!(!silent.is_terminating() && !silent.is_host_network() && silent.containers().is_empty());
        let deleted: Pod = serde_json::from_value(json!({
            "metadata": {"deletionTimestamp": "2026-01-02T03:04:05Z", "deletionGracePeriodSeconds": 1},
            "spec": {"terminationGracePeriodSeconds": 9, "serviceAccountName": "a", "hostNetwork": true,
                     "containers": []},
        }))
        .unwrap();
        assert_eq!(deleted.service_account(), "a");
        assert_eq!(deleted.grace_period(), Duration::from_secs(1));
        assert!(deleted.is_terminating() && deleted.is_host_network());
    }
}
