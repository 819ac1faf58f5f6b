//! A mesh as a control plane would describe it: deployments of twenty pods behind a service each, spread over nodes and
//! zones, with the names that Kubernetes would give them.

use std::collections::HashMap;

use isthmus_model::wire::{self, Resource};
use isthmus_model::{Interner, Policy, PolicyKey};
use isthmus_proto::security::{self, StringMatch, string_match::MatchType};
use isthmus_proto::workload::{self as proto, address};
use isthmus_state::{Applied, Batch, State};

/// The network of everything in it.
pub const NETWORK: &str = "network-1";
/// The cluster of everything in it.
pub const CLUSTER: &str = "cluster-1";
/// Pods of one deployment.
const REPLICAS: u32 = 20;
/// Pods of one node.
const PER_NODE: u32 = 100;
const NAMESPACES: u32 = 50;
const FIRST_POD: u32 = 0x0a00_0001;
const FIRST_VIP: u32 = 0xac10_0001;
const DOMAIN: &str = "svc.cluster.local";

/// A place in the mesh by its number.
struct Deployment(u32);

impl Deployment {
    fn namespace(&self) -> String {
        format!("team-{}", self.0 % NAMESPACES)
    }

    fn name(&self) -> String {
        format!("backend-{}", self.0)
    }

    fn hostname(&self) -> String {
        format!("{}.{}.{DOMAIN}", self.name(), self.namespace())
    }
}

/// The node of this number.
#[must_use]
pub fn node(n: u32) -> String {
    format!("ip-10-{}-{}-7.eu-central-1.compute.internal", n / 250, n % 250)
}

fn port(service_port: u32, target_port: u32) -> proto::Port {
    proto::Port { service_port, target_port, app_protocol: 0 }
}

fn ports() -> Vec<proto::Port> {
    vec![port(80, 8080), port(9090, 9090)]
}

/// The service of deployment `n`.
#[must_use]
pub fn service(n: u32) -> proto::Address {
    let deployment = Deployment(n);
    let vip = proto::NetworkAddress {
        network: NETWORK.to_owned(),
        address: (FIRST_VIP + n).to_be_bytes().to_vec(),
        length: None,
    };
    let service = proto::Service {
        name: deployment.name(),
        namespace: deployment.namespace(),
        hostname: deployment.hostname(),
        addresses: vec![vip],
        ports: ports(),
        canonical: true,
        ..proto::Service::default()
    };
    proto::Address { r#type: Some(address::Type::Service(service)) }
}

/// The pod of this number.
#[must_use]
pub fn workload(n: u32, revision: &str) -> proto::Address {
    let deployment = Deployment(n / REPLICAS);
    let (namespace, name) = (deployment.namespace(), deployment.name());
    // A template's hash and a pod's suffix, of their usual lengths.
    let pod = format!("{name}-{:010x}-{:05x}", u64::from(deployment.0) * 2_654_435_761 % (1 << 40), n);
    let membership = (format!("{namespace}/{}", deployment.hostname()), proto::PortList { ports: ports() });
    let workload = proto::Workload {
        uid: format!("{CLUSTER}//Pod/{namespace}/{pod}"),
        name: pod,
        namespace,
        addresses: vec![(FIRST_POD + n).to_be_bytes().to_vec()],
        network: NETWORK.to_owned(),
        tunnel_protocol: proto::TunnelProtocol::Hbone.into(),
        service_account: name.clone(),
        // Replicas are spread, so that neighbours in the list are not neighbours on a node.
        node: node(n.wrapping_mul(7919) % (n / PER_NODE + 1)),
        canonical_name: name.clone(),
        canonical_revision: revision.to_owned(),
        workload_name: name,
        cluster_id: CLUSTER.to_owned(),
        locality: Some(proto::Locality {
            region: "eu-central-1".to_owned(),
            zone: format!("eu-central-1{}", ["a", "b", "c"][n as usize % 3]),
            subzone: String::new(),
        }),
        services: HashMap::from([membership]),
        ..proto::Workload::default()
    };
    proto::Address { r#type: Some(address::Type::Workload(workload)) }
}

/// Services, then workloads.
#[must_use]
pub fn mesh(workloads: u32) -> Vec<proto::Address> {
    let services = (0..workloads.div_ceil(REPLICAS)).map(service);
    services.chain((0..workloads).map(|n| workload(n, "v1"))).collect()
}

/// The xDS name of a resource.
#[must_use]
pub fn name(resource: &proto::Address) -> String {
    match &resource.r#type {
        Some(address::Type::Workload(workload)) => workload.uid.clone(),
        Some(address::Type::Service(service)) => format!("{}/{}", service.namespace, service.hostname),
        None => String::new(),
    }
}

/// Applies decoded messages as the ADS client does: the resources that convert form one batch.
///
/// # Panics
/// When a resource does not convert.
pub fn push(state: &State, texts: &mut Interner, resources: Vec<proto::Address>) -> Applied {
    state.apply(batch(texts, resources))
}

/// The batch of [`push`].
///
/// # Panics
/// As [`push`].
#[must_use]
pub fn batch(texts: &mut Interner, resources: Vec<proto::Address>) -> Batch {
    let mut batch = Batch::default();
    for resource in resources {
        match wire::address(resource, texts) {
            Ok(Resource::Workload(workload)) => batch.upsert_workloads.push(workload),
            Ok(Resource::Service(service)) => batch.upsert_services.push(service),
            Err(error) => panic!("{error}"),
        }
    }
    batch
}

/// A policy of deployment `n`'s namespace that admits one principal.
///
/// # Panics
/// When it does not convert.
#[must_use]
pub fn policy(n: u32) -> (PolicyKey, Policy) {
    let deployment = Deployment(n);
    let (namespace, name) = (deployment.namespace(), format!("allow-{n}"));
    let principal = format!("cluster.local/ns/{namespace}/sa/client-{n}");
    let one = security::Match {
        principals: vec![StringMatch { match_type: Some(MatchType::Exact(principal)) }],
        destination_ports: vec![8080],
        ..security::Match::default()
    };
    let clause = security::Clause { matches: vec![one] };
    let wire = security::Authorization {
        name: name.clone(),
        namespace: namespace.clone(),
        scope: security::Scope::Namespace.into(),
        rules: vec![security::Rule { clauses: vec![clause] }],
        ..security::Authorization::default()
    };
    let policy = wire::policy(wire).unwrap_or_else(|error| panic!("{error}"));
    (PolicyKey::from(format!("{namespace}/{name}")), policy)
}
