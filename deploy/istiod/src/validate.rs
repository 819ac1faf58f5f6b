//! The validating webhook: what istiod checks of the mesh's own objects before an API server stores them.

use playground_k8s::api::Invalid;
use playground_k8s::manifest::{Kind, object};
use serde_json::Value;

use crate::translate::mesh_config::{Configured, Mesh};
use crate::translate::service_entry::check;
use crate::translate::{authorization, peer_authentication};

/// Checks an object of one of the mesh's kinds. Other kinds are always valid.
///
/// # Errors
/// With the first field that is wrong.
pub fn validate(kind: &Kind, object: &Value) -> Result<(), Invalid> {
    match kind.kind {
        "AuthorizationPolicy" => authorization::translate(object, &Mesh::default()).map(drop),
        "PeerAuthentication" => peer_authentication::check(object),
        "ServiceEntry" => check::service_entry(object),
        "WorkloadEntry" => check::workload_entry(object),
        "ConfigMap" => mesh_config(object),
        _ => Ok(()),
    }
}

/// Checks a ConfigMap that may be the mesh's configuration.
fn mesh_config(map: &Value) -> Result<(), Invalid> {
    let is_it = object::name(map) == "istio" && map.pointer("/data/mesh").is_some();
    let read = Configured::read(if is_it { object::text(map, "/data/mesh") } else { "" });
    read.map(drop).map_err(|problem| Invalid { field: "data.mesh".to_owned(), problem })
}
