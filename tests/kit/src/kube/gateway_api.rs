//! The Gateway API of the scripted server: discovery, lists, and patches of a status, which are refused when they come
//! from another version of the object.

use bytes::Bytes;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::{Api, Body, reply, status};

const GROUP: &str = "gateway.networking.k8s.io";
/// Version, kind, plural, and whether it is namespaced.
const KINDS: [(&str, &str, &str, bool); 5] = [
    ("v1", "GatewayClass", "gatewayclasses", false),
    ("v1", "Gateway", "gateways", true),
    ("v1", "TLSRoute", "tlsroutes", true),
    ("v1alpha2", "TCPRoute", "tcproutes", true),
    ("v1beta1", "ReferenceGrant", "referencegrants", true),
];

impl Api {
    /// Installs the CRDs of the Gateway API, or removes them.
    pub fn install_gateway_api(&self, installed: bool) {
        self.lock().has_gateway_api = installed;
    }

    /// Answers a request below `/apis`.
    pub(super) fn gateway_api(
        &self,
        path: &[&str],
        list: impl FnOnce(Option<&str>, &str) -> Response<Body>,
        patch: Option<Bytes>,
    ) -> Response<Body> {
        let installed = self.lock().has_gateway_api;
        match (path, patch) {
            ([], _) => reply(StatusCode::OK, &groups(installed)),
            ([GROUP, version], _) if installed => reply(StatusCode::OK, &resources(version)),
            ([GROUP, _, plural], None) if installed => list(None, plural),
            ([GROUP, _, "namespaces", namespace, plural], None) if installed => list(Some(namespace), plural),
            ([GROUP, _, "namespaces", namespace, plural, name, "status"], Some(patch)) => {
                self.patch_status(plural, &format!("{namespace}/{name}"), &patch)
            }
            ([GROUP, _, plural, name, "status"], Some(patch)) => self.patch_status(plural, name, &patch),
            _ => status(StatusCode::NOT_FOUND, "the server could not find the requested resource"),
        }
    }

    fn patch_status(&self, plural: &str, name: &str, patch: &[u8]) -> Response<Body> {
        if let Some(refusal) = self.lock().refuse_patches {
            let code = StatusCode::from_u16(refusal).unwrap_or(StatusCode::FORBIDDEN);
            return status(code, &format!("{plural}/status is forbidden"));
        }
        let before = self.get(plural, name);
        let patch: Value = serde_json::from_slice(patch).unwrap_or_default();
        if before.is_null() {
            return status(StatusCode::NOT_FOUND, "not found");
        }
        if patch["metadata"]["resourceVersion"] != before["metadata"]["resourceVersion"] {
            return status(StatusCode::CONFLICT, "the object has been modified");
        }
        let mut object = before.clone();
        for (field, value) in patch["status"].as_object().into_iter().flatten() {
            object["status"][field] = value.clone();
        }
        if object != before {
            *self.lock().patched.entry((plural.to_owned(), name.to_owned())).or_default() += 1;
            self.put(plural, object.clone());
        }
        reply(StatusCode::OK, &object)
    }
}

fn groups(installed: bool) -> Value {
    let versions = ["v1", "v1beta1", "v1alpha2"]
        .map(|version| json!({"groupVersion": format!("{GROUP}/{version}"), "version": version}));
    let group = json!({"name": GROUP, "versions": versions, "preferredVersion": versions[0]});
    let groups: Vec<Value> = installed.then_some(group).into_iter().collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resources(version: &str) -> Value {
    let of_version = KINDS.iter().filter(|kind| kind.0 == version);
    let resources: Vec<Value> = of_version
        .map(|(_, kind, plural, namespaced)| {
            json!({"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind,
                   "verbs": ["get", "list", "watch", "patch"]})
        })
        .collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": format!("{GROUP}/{version}"),
           "resources": resources})
}
