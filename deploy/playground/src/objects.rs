//! The Kubernetes objects that belong to the world and not to what is tried in it: nodes, the mesh's own parts, the
//! cluster's DNS. In a real cluster they come from the distribution and from charts. Pure.

use playground_node::kubelet::Folders;
use serde_json::{Value, json};

use crate::dir::Dir;
use crate::pki::Files;
use crate::plan::{Cluster, GATEWAY, Plan, SYSTEM};

pub(crate) mod gateway;

/// Port of the control plane.
const ISTIOD: u16 = 15012;

/// Everything that is there before the cluster's manifests are applied.
pub(crate) fn base(plan: &Plan, cluster: &Cluster, root: &str) -> Vec<Value> {
    let mut all = vec![namespace(SYSTEM, &cluster.name), namespace("kube-system", &cluster.name)];
    all.extend(cluster.nodes.iter().map(|node| {
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": node.name, "labels": {
                "kubernetes.io/hostname": node.name,
                "topology.kubernetes.io/region": cluster.name,
                "topology.kubernetes.io/zone": node.name,
            }},
            "spec": {"podCIDR": node.pods.to_string()},
            "status": {
                "addresses": [{"type": "InternalIP", "address": node.address.to_string()}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        })
    }));
    let accounts =
        [(SYSTEM, "ztunnel"), (SYSTEM, "istio-cni"), (SYSTEM, "istiod"), ("kube-system", "coredns")];
    all.extend(accounts.map(|(namespace, name)| account(namespace, name)));
    all.push(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"namespace": SYSTEM, "name": "istio-ca-root-cert"},
        "data": {"root-cert.pem": root},
    }));
    // The playground's istiod deploys and reports on no gateway, as if there were none in the cluster.
    all.push(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": "istio-east-west"}, "spec": {"controllerName": "isthmus.io/east-west-gateway"},
    }));
    all.extend(istiod_service(plan, cluster));
    all.push(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "kube-system", "name": "kube-dns"},
        "spec": {
            "clusterIP": cluster.dns().to_string(), "selector": {"k8s-app": "kube-dns"},
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53}],
        },
    }));
    all
}

/// What all other programs ask for at once: name server and control plane.
pub(crate) fn foundations(dir: &Dir, plan: &Plan, cluster: &Cluster) -> Vec<Value> {
    let istiod = cluster.primary.then(|| istiod(dir, plan, cluster));
    std::iter::once(cluster_dns(dir, cluster)).chain(istiod).collect()
}

/// The data plane of each node.
pub(crate) fn data_plane(dir: &Dir, cluster: &Cluster) -> Vec<Value> {
    vec![node_role(dir, cluster), agent(dir, cluster)]
}

fn namespace(name: &str, network: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"topology.istio.io/network": network}},
    })
}

fn account(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}})
}

/// The Service by which every agent finds its control plane: the pods here, or the primary's gateway.
fn istiod_service(plan: &Plan, cluster: &Cluster) -> Vec<Value> {
    let mut spec = json!({"ports": [{"name": "https-dns", "port": ISTIOD, "targetPort": ISTIOD}]});
    let mut all = Vec::new();
    if cluster.primary {
        spec["selector"] = json!({"app": "istiod"});
    } else {
        all.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "namespace": SYSTEM, "name": "istiod-remote", "labels": {"kubernetes.io/service-name": "istiod"},
            },
            "ports": [{"name": "https-dns", "port": ISTIOD, "protocol": "TCP"}],
            "endpoints": [{"addresses": [plan.primary_of(cluster).gateway.to_string()], "conditions": {"ready": true}}],
        }));
    }
    let meta = json!({"namespace": SYSTEM, "name": "istiod"});
    all.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}));
    all
}

fn cluster_dns(dir: &Dir, cluster: &Cluster) -> Value {
    let args = ["cluster-dns".to_owned(), "--kubeconfig".to_owned(), path(dir.kubeconfig(&cluster.name))];
    let pod = json!({
        "serviceAccountName": "coredns",
        "containers": [{
            "name": "coredns", "image": "isthmus-playground", "args": args,
            "readinessProbe": {"tcpSocket": {"port": 53}},
        }],
    });
    workload("Deployment", "kube-system", "coredns", ("k8s-app", "kube-dns"), pod)
}

fn istiod(dir: &Dir, plan: &Plan, cluster: &Cluster) -> Value {
    let files = Files::of(dir, &cluster.name);
    let mut args: Vec<String> =
        ["istiod", "--cluster", &cluster.name, "--network", &cluster.name].map(str::to_owned).into();
    let kubeconfig = path(dir.kubeconfig(&cluster.name));
    let listen = format!("0.0.0.0:{ISTIOD}");
    let more = [("--kubeconfig", kubeconfig), ("--listen", listen), ("--cert", path(files.istiod.0))];
    let more = more.into_iter().chain([
        ("--key", path(files.istiod.1)),
        ("--ca-cert", path(files.ca.0)),
        ("--ca-key", path(files.ca.1)),
        ("--root", path(files.root)),
    ]);
    more.for_each(|(flag, value)| args.extend([flag.to_owned(), value]));
    for other in plan.clusters.iter().filter(|other| other.name != cluster.name) {
        args.extend(["--remote".to_owned(), format!("{}={}", other.name, path(dir.kubeconfig(&other.name)))]);
    }
    let pod = json!({
        "serviceAccountName": "istiod",
        "containers": [{
            "name": "discovery", "image": "isthmus-playground", "args": args,
            "readinessProbe": {"tcpSocket": {"port": ISTIOD}},
        }],
    });
    workload("Deployment", SYSTEM, "istiod", ("app", "istiod"), pod)
}

fn node_role(dir: &Dir, cluster: &Cluster) -> Value {
    let node = path(dir.node("$(NODE_NAME)"));
    let env = json!([
        field("NODE_NAME", "spec.nodeName"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        {"name": "CNI_AGENT_RUN_DIR", "value": path(dir.cni_run_dir("$(NODE_NAME)"))},
        {"name": "ZTUNNEL_UDS_ADDRESS", "value": format!("{node}/ztunnel.sock")},
        {"name": "CNI_NETNS_DIR", "value": path(dir.netns())},
        {"name": "HOST_PROC", "value": path(Folders::processes(&dir.netns()))},
        {"name": "KUBECONFIG", "value": path(dir.kubeconfig(&cluster.name))},
        {"name": "EXCLUDE_NAMESPACES", "value": "kube-system"},
        {"name": "AMBIENT_ENABLED", "value": "true"},
        {"name": "AMBIENT_DNS_CAPTURE", "value": "true"},
        {"name": "AMBIENT_IPV6", "value": "false"},
        {"name": "RUST_LOG", "value": "info"},
    ]);
    let pod = json!({
        "serviceAccountName": "istio-cni", "hostNetwork": true,
        "containers": [{
            "name": "install-cni", "image": "isthmus", "args": ["node"], "env": env,
            "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 8000}},
        }],
    });
    workload("DaemonSet", SYSTEM, "istio-cni-node", ("k8s-app", "istio-cni-node"), pod)
}

fn agent(dir: &Dir, cluster: &Cluster) -> Value {
    let mut env = mesh_env(&cluster.name);
    let uds = format!("{}/ztunnel.sock", path(dir.node("$(NODE_NAME)")));
    env.push(json!({"name": "INPOD_UDS", "value": uds}));
    let mut pod = mesh_pod("ztunnel", &["proxy", "ztunnel"], &env);
    pod["containers"][0]["image"] = json!("ztunnel");
    workload("DaemonSet", SYSTEM, "ztunnel", ("app", "ztunnel"), pod)
}

/// What everything that speaks to the control plane is told, under the names of ztunnel's chart.
fn mesh_env(network: &str) -> Vec<Value> {
    let istiod = format!("https://istiod.{SYSTEM}.svc:{ISTIOD}");
    let root = "./var/run/secrets/istio/root-cert.pem";
    let mut env = vec![
        field("NODE_NAME", "spec.nodeName"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
    ];
    let values = [
        ("NETWORK", network),
        ("CLUSTER_ID", network),
        ("ISTIO_META_CLUSTER_ID", network),
        ("XDS_ADDRESS", &istiod),
        ("CA_ADDRESS", &istiod),
        ("XDS_ROOT_CA", root),
        ("CA_ROOT_CA", root),
        ("AUTH_TOKEN", "./var/run/secrets/tokens/istio-token"),
        ("RUST_LOG", "info"),
    ];
    env.extend(values.map(|(name, value)| json!({"name": name, "value": value})));
    env
}

/// A pod of a mesh part: token and root as in the charts, ready when 15021 says so.
fn mesh_pod(account: &str, args: &[&str], env: &[Value]) -> Value {
    json!({
        "serviceAccountName": account,
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "istio-proxy", "image": "isthmus", "args": args, "env": env,
            "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}},
            "volumeMounts": [
                {"name": "istio-token", "mountPath": "/var/run/secrets/tokens"},
                {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
            ],
        }],
        "volumes": [
            {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
            {"name": "istio-token", "projected": {"sources": [{"serviceAccountToken": {
                "audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token",
            }}]}},
        ],
    })
}

/// A Deployment of one replica, or a DaemonSet. The mesh's own parts are never captured.
fn workload(kind: &str, namespace: &str, name: &str, (key, value): (&str, &str), pod: Value) -> Value {
    let labels = json!({key: value, "istio.io/dataplane-mode": "none"});
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": {"matchLabels": {key: value}}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    });
    if kind == "Deployment" {
        object["spec"]["replicas"] = json!(1);
    }
    object
}

fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn path(path: std::path::PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

/// `<namespace>/<name>` of the gateways that get the LoadBalancer addresses.
pub(crate) fn gateway_name() -> String {
    format!("{SYSTEM}/{GATEWAY}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Topology;
    use playground_k8s::manifest::object;

    #[test]
    fn every_object_is_of_a_known_kind() {
        let dir = Dir::at("/w".into());
        let plan = Plan::new(Topology::PrimaryRemote);
        for cluster in &plan.clusters {
            let all =
                [base(&plan, cluster, "root"), foundations(&dir, &plan, cluster), data_plane(&dir, cluster)];
            for object in all.concat() {
                assert!(object::kind(&object).is_some(), "{object}");
            }
        }
    }

    #[test]
    fn a_remote_cluster_finds_istiod_behind_the_primarys_gateway() {
        let plan = Plan::new(Topology::PrimaryRemote);
        let west = istiod_service(&plan, &plan.clusters[1]);
        assert_eq!(west[0]["endpoints"][0]["addresses"][0], "192.168.97.248");
        assert!(west[1]["spec"].get("selector").is_none());
        let programs = foundations(&Dir::at("/w".into()), &plan, &plan.clusters[1]);
        assert!(programs.iter().all(|program| object::name(program) != "istiod"));
    }
}
