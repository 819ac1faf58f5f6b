//! What the process knows about itself: node, cluster, network, its own pod, and the metadata that it sends to the
//! control plane.

use std::collections::BTreeMap;

use isthmus_model::{ClusterId, Namespace, NetworkId, NodeName, TrustDomain};

use crate::config::mesh::{self, ProxyConfig};
use crate::config::source::Reader;
use crate::config::trust;

/// Node, cluster and pod that the process runs in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalInfo {
    /// Node (`NODE_NAME`). Without a name every workload counts as local.
    pub node: NodeName,
    /// Network (`NETWORK`).
    pub network: NetworkId,
    /// Cluster (`CLUSTER_ID`).
    pub cluster: ClusterId,
    /// DNS domain of the cluster (`CLUSTER_DOMAIN`).
    pub domain: String,
    /// Trust domain (`TRUST_DOMAIN`).
    pub trust_domain: TrustDomain,
    /// Name of the agent's own pod (`POD_NAME`).
    pub pod_name: String,
    /// Its namespace (`POD_NAMESPACE`).
    pub pod_namespace: String,
    /// Its service account (`SERVICE_ACCOUNT`).
    pub service_account: String,
    /// Its address (`INSTANCE_IP`).
    pub instance_ip: String,
    /// Namespace whose policies may apply to the whole mesh (`ISTHMUS_ROOT_NAMESPACE`, else the mesh config's
    /// `rootNamespace`).
    pub root_namespace: Namespace,
    /// Whether dry-run policies are logged at info instead of debug (`AUTHZ_POLICY_INFO_LOGGING`).
    pub log_dry_run_at_info: bool,
    /// Namespace whose service is preferred when several namespaces define the same hostname
    /// (`PREFERED_SERVICE_NAMESPACE`, spelled with one R).
    pub preferred_namespace: Option<Namespace>,
    /// Node metadata (`ISTIO_META_…`, `proxyMetadata`).
    pub metadata: BTreeMap<String, String>,
    /// Node metadata with JSON values (`ISTIO_METAJSON_…`).
    pub json_metadata: BTreeMap<String, String>,
}

pub(super) fn read_local_info(r: &Reader<'_>, proxy: &ProxyConfig) -> LocalInfo {
    let mut metadata =
        proxy.metadata.iter().map(|(k, v)| (mesh::meta_key(k), v.clone())).collect::<BTreeMap<_, _>>();
    metadata.extend(r.prefixed("ISTIO_META_"));
    let cluster = metadata.get("CLUSTER_ID").cloned().or_else(|| r.text("CLUSTER_ID"));
    let text = |key: &str| r.text(key).unwrap_or_default();
    LocalInfo {
        node: text("NODE_NAME").into(),
        network: text("NETWORK").into(),
        cluster: cluster.unwrap_or_else(|| "Kubernetes".to_owned()).into(),
        domain: r.text("CLUSTER_DOMAIN").unwrap_or_else(|| "cluster.local".to_owned()),
        trust_domain: text("TRUST_DOMAIN").as_str().into(),
        pod_name: text("POD_NAME"),
        pod_namespace: text("POD_NAMESPACE"),
        service_account: text("SERVICE_ACCOUNT"),
        preferred_namespace: r.text("PREFERED_SERVICE_NAMESPACE").map(Namespace::from),
        instance_ip: r.text("INSTANCE_IP").unwrap_or_else(|| "1.1.1.1".to_owned()),
        root_namespace: read_root_namespace(r),
        log_dry_run_at_info: r.is_true("AUTHZ_POLICY_INFO_LOGGING"),
        metadata,
        json_metadata: r.prefixed("ISTIO_METAJSON_"),
    }
}

fn read_root_namespace(r: &Reader<'_>) -> Namespace {
    let mesh = || mesh::root_namespace(&std::fs::read_to_string(trust::mesh_config(r)).ok()?);
    r.text("ISTHMUS_ROOT_NAMESPACE").or_else(mesh).unwrap_or_else(|| "istio-system".to_owned()).into()
}
