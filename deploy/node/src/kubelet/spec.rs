//! What the kubelet reads of a Pod. Fields it does not know are somebody else's.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

/// A Pod object.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

/// Who it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) deletion_grace_period_seconds: Option<u64>,
}

/// What runs in it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) node_name: String,
    pub(super) service_account_name: String,
    pub(super) host_network: bool,
    pub(super) containers: Vec<Container>,
    pub(super) volumes: Vec<Volume>,
    pub(super) restart_policy: Option<String>,
    pub(super) termination_grace_period_seconds: Option<u64>,
}

/// One container.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) image: String,
    pub(super) command: Vec<String>,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<EnvVar>,
    pub(super) ports: Vec<ContainerPort>,
    pub(super) volume_mounts: Vec<VolumeMount>,
    pub(super) readiness_probe: Option<Probe>,
}

/// A variable: a value, or where to find one.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EnvVar {
    pub(super) name: String,
    pub(super) value: Option<String>,
    pub(super) value_from: Option<ValueFrom>,
}

/// Only the pod's own fields are supported.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ValueFrom {
    pub(super) field_ref: Option<FieldRef>,
}

/// A field of the pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FieldRef {
    pub(super) field_path: String,
}

/// A named port, which probes may refer to.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerPort {
    pub(super) name: String,
    pub(super) container_port: u16,
}

/// Where a volume appears.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeMount {
    pub(super) name: String,
    pub(super) mount_path: String,
}

/// A volume of one of the supported sorts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) config_map: Option<NamedSource>,
    pub(super) secret: Option<NamedSource>,
    pub(super) projected: Option<Projected>,
    pub(super) empty_dir: Option<Value>,
    pub(super) host_path: Option<Value>,
}

/// A ConfigMap (`name`) or a Secret (`secretName`).
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NamedSource {
    pub(super) name: String,
    pub(super) secret_name: String,
    pub(super) optional: bool,
}

/// Several sources in one folder.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Projected {
    pub(super) sources: Vec<Source>,
}

/// One source of a projected volume.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Source {
    pub(super) service_account_token: Option<TokenSource>,
    pub(super) config_map: Option<NamedSource>,
}

/// A token of the pod's service account, bound to the pod.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TokenSource {
    pub(super) audience: Option<String>,
    pub(super) expiration_seconds: Option<u64>,
    pub(super) path: String,
}

/// When a container counts as ready.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Probe {
    pub(super) http_get: Option<HttpGet>,
    pub(super) tcp_socket: Option<TcpSocket>,
    pub(super) period_seconds: Option<u64>,
    pub(super) timeout_seconds: Option<u64>,
    pub(super) failure_threshold: Option<u32>,
}

/// Ready when this answers with 2xx or 3xx.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct HttpGet {
    pub(super) path: Option<String>,
    pub(super) port: Value,
}

/// Ready when this accepts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct TcpSocket {
    pub(super) port: Value,
}

// === impl Pod ===

impl Pod {
    /// The path of the object at the API server.
    pub(super) fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", self.metadata.namespace, self.metadata.name)
    }

    /// Whether it is being deleted.
    pub(super) fn ending(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// How long its programs may take to end.
    pub(super) fn grace(&self) -> Duration {
        let asked = self.metadata.deletion_grace_period_seconds;
        Duration::from_secs(asked.or(self.spec.termination_grace_period_seconds).unwrap_or(30))
    }

    /// The service account, as Kubernetes defaults it.
    pub(super) fn account(&self) -> &str {
        if self.spec.service_account_name.is_empty() { "default" } else { &self.spec.service_account_name }
    }

    /// A field as the downward API names it.
    pub(super) fn field(&self, path: &str, ip: &str, host: &str) -> Option<String> {
        let keyed = |map: &BTreeMap<String, String>, rest: &str| {
            map.get(rest.strip_prefix("['")?.strip_suffix("']")?).cloned()
        };
        match path {
            "metadata.name" => Some(self.metadata.name.clone()),
            "metadata.namespace" => Some(self.metadata.namespace.clone()),
            "metadata.uid" => Some(self.metadata.uid.clone()),
            "spec.nodeName" => Some(self.spec.node_name.clone()),
            "spec.serviceAccountName" => Some(self.account().to_owned()),
            "status.podIP" => Some(ip.to_owned()),
            "status.hostIP" => Some(host.to_owned()),
            _ => path
                .strip_prefix("metadata.labels")
                .and_then(|rest| keyed(&self.metadata.labels, rest))
                .or_else(|| {
                    path.strip_prefix("metadata.annotations")
                        .and_then(|rest| keyed(&self.metadata.annotations, rest))
                }),
        }
    }
}

impl Container {
    /// A port by number or by name.
    pub(super) fn port(&self, port: &Value) -> Option<u16> {
        match port {
            Value::Number(number) => number.as_u64().and_then(|port| u16::try_from(port).ok()),
            Value::String(name) => name.parse().ok().or_else(|| {
                self.ports.iter().find(|port| port.name == *name).map(|port| port.container_port)
            }),
            _ => None,
        }
    }

    /// The variables, with `$(NAME)` of earlier ones filled in as Kubernetes does.
    ///
    /// # Errors
    /// The name of a variable whose source is not supported or not there.
    pub(super) fn variables(&self, pod: &Pod, ip: &str, host: &str) -> Result<Vec<(String, String)>, String> {
        let mut known: Vec<(String, String)> = Vec::new();
        for variable in &self.env {
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
    use serde_json::json;

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
        let got = pod.spec.containers[0].variables(&pod, "10.0.0.5", "").unwrap();
        let values: Vec<_> = got.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["east-1", "/x/east-1/$(NONE)/y", "x", "10.0.0.5"]);
    }

    #[test]
    fn a_source_that_is_not_supported_is_named() {
        let pod = pod(json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]));
        let error = pod.spec.containers[0].variables(&pod, "", "").unwrap_err();
        assert_eq!(error, "env A: its valueFrom is not supported here");
    }

    #[test]
    fn ports_have_names() {
        let container = pod(json!([])).spec.containers.remove(0);
        assert_eq!(container.port(&json!("http")), Some(5000));
        assert_eq!(container.port(&json!(81)), Some(81));
        assert_eq!(container.port(&json!("none")), None);
    }
}
