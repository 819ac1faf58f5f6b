//! The world behind istioctl's `dump.json`, in our vocabulary.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_admin::dump::pods::{ConnectionView, Connections, PodView};
use isthmus_admin::dump::{CertificateView, EndpointView, PemView};
use isthmus_admin::{Each, Source, View};
use isthmus_model::policy::{AccountMatch, Match};
use isthmus_model::workload::PortMap;
use isthmus_model::{
    Action, GatewayAddress, GatewayDestination, Health, NamespacedHostname, NetworkAddress, Policy, Protocol,
    Scope, Service, Visibility, Workload,
};
use serde_json::{Value, json};

/// What was read.
#[derive(Clone)]
pub(crate) struct World(Arc<Mesh>);

struct Mesh {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
    certificates: Vec<CertificateView>,
    pods: Vec<Pod>,
}

/// A pod and, while it is up, its connections: inbound and outbound.
struct Pod {
    info: [String; 4],
    connections: Option<[Vec<ConnectionView>; 2]>,
}

impl World {
    pub(crate) fn read() -> Self {
        let dump: Value = serde_json::from_str(include_str!("../fixtures/istioctl/dump.json")).unwrap();
        let services = dump["services"].as_object().unwrap();
        let pods = dump["workloadState"].as_object().unwrap();
        Self(Arc::new(Mesh {
            workloads: dump["workloads"]
                .as_object()
                .unwrap()
                .values()
                .map(|from| workload(from, services.values()))
                .collect(),
            services: services.values().map(service).collect(),
            policies: dump["policies"].as_array().unwrap().iter().map(policy).collect(),
            certificates: dump["certificates"].as_array().unwrap().iter().map(certificate).collect(),
            pods: pods.iter().map(|(uid, from)| pod(uid, from)).collect(),
        }))
    }
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

fn address(from: &Value) -> NetworkAddress {
    let (network, address) = from.as_str().unwrap().split_once('/').unwrap();
    NetworkAddress { network: network.into(), address: address.parse().unwrap() }
}

fn ports(from: &Value) -> PortMap {
    let number = |value: &Value| u16::try_from(value.as_u64().unwrap()).unwrap();
    from.as_object().unwrap().iter().map(|(port, to)| (port.parse().unwrap(), number(to))).collect()
}

fn workload<'a>(from: &Value, services: impl Iterator<Item = &'a Value>) -> Workload {
    let mut member = BTreeMap::new();
    for service in services {
        let mine =
            service["endpoints"].as_object().unwrap().values().find(|e| e["workloadUid"] == from["uid"]);
        if let Some(endpoint) = mine {
            let key = format!("{}/{}", text(service, "namespace"), text(service, "hostname"));
            member.insert(NamespacedHostname::parse(&key).unwrap(), ports(&endpoint["port"]));
        }
    }
    let waypoint = from.get("waypoint").map(|waypoint| GatewayAddress {
        destination: GatewayDestination::Address(address(&waypoint["destination"])),
        hbone_mtls_port: 15008,
    });
    Workload {
        uid: text(from, "uid").into(),
        name: text(from, "name").into(),
        namespace: text(from, "namespace").into(),
        addresses: from["workloadIps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|ip| ip.as_str().unwrap().parse().unwrap())
            .collect(),
        network: text(from, "network").into(),
        protocol: if from["protocol"] == "HBONE" { Protocol::Hbone } else { Protocol::Tcp },
        service_account: text(from, "serviceAccount").into(),
        waypoint,
        node: text(from, "node").into(),
        canonical_name: text(from, "canonicalName").into(),
        canonical_revision: text(from, "canonicalRevision").into(),
        workload_name: text(from, "workloadName").into(),
        native_tunnel: from["nativeTunnel"] == true,
        services: member.into(),
        status: if from["status"] == "Healthy" { Health::Healthy } else { Health::Unhealthy },
        cluster_id: text(from, "clusterId").into(),
        capacity: 1,
        ..Workload::default()
    }
}

fn service(from: &Value) -> Service {
    Service {
        name: text(from, "name").into(),
        namespace: text(from, "namespace").into(),
        hostname: text(from, "hostname").into(),
        vips: from["vips"].as_array().unwrap().iter().map(address).collect(),
        cidr_vips: Vec::new(),
        ports: ports(&from["ports"]),
        subject_alt_names: Vec::new(),
        waypoint: None,
        weighted_waypoints: Vec::new(),
        load_balancer: None,
        ip_families: None,
        canonical: true,
        visibility: Visibility::Public,
    }
}

fn policy(from: &Value) -> Policy {
    let account = |from: &Value| AccountMatch {
        namespace: text(from, "namespace").into(),
        service_account: text(from, "serviceAccount").into(),
    };
    let matcher = |from: &Value| Match {
        service_accounts: from["serviceAccounts"].as_array().unwrap().iter().map(account).collect(),
        ..Match::default()
    };
    let clause = |from: &Value| from.as_array().unwrap().iter().map(matcher).collect();
    let rule = |from: &Value| from.as_array().unwrap().iter().map(clause).collect();
    Policy {
        name: text(from, "name").into(),
        namespace: text(from, "namespace").into(),
        scope: match from["scope"].as_str().unwrap() {
            "Namespace" => Scope::Namespace,
            "WorkloadSelector" => Scope::WorkloadSelector,
            other => panic!("scope {other}"),
        },
        action: if from["action"] == "Allow" { Action::Allow } else { Action::Deny },
        rules: from["rules"].as_array().unwrap().iter().map(rule).collect(),
        dry_run: false,
    }
}

/// The early form has the root as the last of the chain.
fn certificate(from: &Value) -> CertificateView {
    let pem = |from: &Value| PemView {
        pem: text(from, "pem"),
        serial: text(from, "serialNumber"),
        valid_from: text(from, "validFrom"),
        expires: text(from, "expirationTime"),
    };
    let mut chain: Vec<_> = from["certChain"].as_array().unwrap().iter().map(pem).collect();
    let roots = chain.split_off(chain.len().saturating_sub(1));
    CertificateView { identity: text(from, "identity"), state: text(from, "state"), chain, roots }
}

fn pod(uid: &str, from: &Value) -> Pod {
    let connection = |from: &Value| ConnectionView {
        src: text(from, "src"),
        original_dst: from["originalDst"].as_str().map(str::to_owned),
        actual_dst: text(from, "actualDst"),
        protocol: if from["protocol"] == "HBONE" { "HBONE" } else { "TCP" },
    };
    let list = |key: &str| from["connections"][key].as_array().unwrap().iter().map(connection).collect();
    let info = &from["info"];
    Pod {
        info: [uid.to_owned(), text(info, "name"), text(info, "namespace"), text(info, "serviceAccount")],
        connections: (from["state"] == "Up").then(|| [list("inbound"), list("outbound")]),
    }
}

impl View for World {
    fn workloads(&self) -> Each<'_, &Workload> {
        Box::new(self.0.workloads.iter())
    }
    fn services(&self) -> Each<'_, &Service> {
        Box::new(self.0.services.iter())
    }
    fn staged(&self) -> Each<'_, &NamespacedHostname> {
        Box::new(std::iter::empty())
    }
    fn policies(&self) -> Each<'_, &Policy> {
        Box::new(self.0.policies.iter())
    }
    fn endpoints<'a>(&'a self, service: &'a NamespacedHostname) -> Each<'a, EndpointView<'a>> {
        Box::new(self.0.workloads.iter().filter_map(|workload| {
            let ports = workload.services.get(service)?;
            Some(EndpointView { uid: &workload.uid, ports, status: workload.status })
        }))
    }
}

impl Source for World {
    fn pin(&self) -> Arc<dyn View> {
        Arc::new(self.clone())
    }
    fn certificates(&self) -> Each<'_, CertificateView> {
        Box::new(self.0.certificates.iter().cloned())
    }
    fn pods(&self) -> Option<Each<'_, PodView<'_>>> {
        let view = |pod: &'_ Pod| {
            let [uid, name, namespace, account] = &pod.info;
            let connections = pod.connections.clone().map(|[inbound, outbound]| Connections {
                inbound: Box::new(inbound.into_iter()),
                outbound: Box::new(outbound.into_iter()),
            });
            PodView {
                uid: uid.as_str().into(),
                name: name.as_str().into(),
                namespace: namespace.as_str().into(),
                service_account: account.as_str().into(),
                reason: None,
                connections,
            }
        };
        Some(Box::new(self.0.pods.iter().map(view)))
    }
    fn rejected(&self) -> Vec<(String, String)> {
        Vec::new()
    }
    fn config(&self) -> Value {
        json!({})
    }
    fn static_config(&self) -> Arc<dyn View> {
        Arc::new(self.clone())
    }
    fn istio_version(&self) -> String {
        "unknown".to_owned()
    }
}
