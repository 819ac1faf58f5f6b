//! The xDS node: id and metadata by which the control plane recognises the agent.

use std::collections::BTreeMap;

use isthmus_model::{Namespace, NodeName, Text};
use isthmus_proto::discovery;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

/// The node, before it is encoded.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Address of the agent's pod; sent as `1.1.1.1` when it is empty.
    pub instance_ip: Text,
    /// Name of the agent's pod.
    pub pod_name: Text,
    /// Its namespace.
    pub namespace: Namespace,
    /// Kubernetes node.
    pub node_name: NodeName,
    /// Additional metadata; keys are without the `ISTIO_META_` and `ISTIO_METAJSON_` prefixes.
    pub metadata: BTreeMap<String, Metadata>,
}

/// A metadata value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Metadata {
    /// From `ISTIO_META_…`.
    Text(String),
    /// From `ISTIO_METAJSON_…`.
    Json(serde_json::Value),
}

impl Node {
    /// Encodes it. The domain in the id is always `svc.cluster.local`, whatever the cluster's domain is: istiod parses it.
    #[must_use]
    pub fn to_proto(&self) -> discovery::Node {
        let Self { instance_ip, pod_name, namespace, node_name, metadata } = self;
        let ip = if instance_ip.is_empty() { "1.1.1.1" } else { instance_ip.as_str() };
        let own = [
            ("NAME", pod_name.as_str()),
            ("NAMESPACE", namespace.as_str()),
            ("INSTANCE_IPS", ip),
            ("NODE_NAME", node_name.as_str()),
        ];
        let mut fields: BTreeMap<String, Value> =
            own.into_iter().map(|(key, value)| (key.to_owned(), text(value.to_owned()))).collect();
        for (key, value) in metadata {
            let value = match value {
                Metadata::Text(value) => text(value.clone()),
                Metadata::Json(value) => json(value),
            };
            fields.insert(key.clone(), value);
        }
        discovery::Node {
            id: format!("ztunnel~{ip}~{pod_name}.{namespace}~{namespace}.svc.cluster.local"),
            cluster: String::new(),
            metadata: Some(Struct { fields }),
        }
    }
}

fn text(value: String) -> Value {
    Value { kind: Some(Kind::StringValue(value)) }
}

fn json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(*value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Json::String(value) => Kind::StringValue(value.clone()),
        Json::Array(values) => Kind::ListValue(ListValue { values: values.iter().map(json).collect() }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.iter().map(|(key, value)| (key.clone(), json(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_metadata_have_the_form_that_istiod_expects() {
        let node = Node {
            instance_ip: "10.0.0.7".into(),
            pod_name: "ztunnel-x".into(),
            namespace: "istio-system".into(),
            node_name: "n1".into(),
            metadata: BTreeMap::from([
                ("DNS_CAPTURE".to_owned(), Metadata::Text("true".to_owned())),
                ("LABELS".to_owned(), Metadata::Json(serde_json::json!({"a": ["b", 1, true, null]}))),
            ]),
        };
        let proto = node.to_proto();
        assert_eq!(proto.id, "ztunnel~10.0.0.7~ztunnel-x.istio-system~istio-system.svc.cluster.local");
        let fields = proto.metadata.unwrap().fields;
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(names, ["DNS_CAPTURE", "INSTANCE_IPS", "LABELS", "NAME", "NAMESPACE", "NODE_NAME"]);
        assert_eq!(fields["NODE_NAME"], text("n1".to_owned()));
        let list = ListValue {
            values: vec![
                text("b".to_owned()),
                Value { kind: Some(Kind::NumberValue(1.0)) },
                Value { kind: Some(Kind::BoolValue(true)) },
                Value { kind: Some(Kind::NullValue(0)) },
            ],
        };
        let inner = BTreeMap::from([("a".to_owned(), Value { kind: Some(Kind::ListValue(list)) })]);
        assert_eq!(fields["LABELS"].kind, Some(Kind::StructValue(Struct { fields: inner })));
    }

    #[test]
    fn an_unknown_address_is_sent_as_the_placeholder() {
        assert!(Node::default().to_proto().id.starts_with("ztunnel~1.1.1.1~"));
    }
}
