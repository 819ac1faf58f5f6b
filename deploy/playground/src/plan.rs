//! Every name and address of the world, as plain values; nothing here touches the kernel.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use playground_node::pod_network::nth;

/// Where the control planes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Topology {
    /// An istiod in each cluster; each reads both API servers.
    #[default]
    MultiPrimary,
    /// One istiod, in east; west's agents reach it through east's gateway.
    PrimaryRemote,
}

/// The whole world.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) topology: Topology,
    pub(crate) clusters: Vec<Cluster>,
}

/// One cluster, on a network of the same name.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) pods: Ipv4Net,
    pub(crate) services: Ipv4Net,
    /// The API server, on the network that joins the clusters.
    pub(crate) api: Ipv4Addr,
    /// The LoadBalancer address of the east-west gateway, on the network that joins the clusters.
    pub(crate) gateway: Ipv4Addr,
    pub(crate) nodes: Vec<Node>,
    /// Whether an istiod runs here.
    pub(crate) primary: bool,
}

/// One node of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// On the network that joins the clusters.
    pub(crate) address: Ipv4Addr,
    /// The pods of this node, a /24.
    pub(crate) pods: Ipv4Net,
    /// The LoadBalancer address that this node announces, if any.
    pub(crate) announces: Option<Ipv4Addr>,
}

/// Port of the API servers.
pub(crate) const API_PORT: u16 = 6443;
/// Namespace of the mesh's own parts.
pub(crate) const SYSTEM: &str = "istio-system";
/// Name of the east-west gateways and of their service accounts.
pub(crate) const GATEWAY: &str = "istio-eastwestgateway";
/// The network that joins the clusters.
pub(crate) const UNDERLAY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 97, 0), 24);
/// The world's own address there.
pub(crate) const WORLD: Ipv4Addr = Ipv4Addr::new(192, 168, 97, 1);

impl Plan {
    /// The plan for a topology.
    pub(crate) fn new(topology: Topology) -> Self {
        let east = cluster("east", 0, true);
        let west = cluster("west", 1, topology == Topology::MultiPrimary);
        Self { topology, clusters: vec![east, west] }
    }

    /// Whether this is the name of a cluster or of a node.
    pub(crate) fn has_place(&self, name: &str) -> bool {
        self.clusters.iter().any(|all| all.name == name || all.nodes.iter().any(|node| node.name == name))
    }

    /// The cluster whose istiod serves `cluster`'s agents.
    pub(crate) fn primary_of<'a>(&'a self, cluster: &'a Cluster) -> &'a Cluster {
        if cluster.primary {
            return cluster;
        }
        self.clusters.iter().find(|other| other.primary).unwrap_or(cluster)
    }
}

impl Cluster {
    /// The cluster's DNS server: the tenth service address.
    pub(crate) fn dns(&self) -> Ipv4Addr {
        nth(self.services, 10)
    }

    /// The API server's address as in a kubeconfig.
    pub(crate) fn api_url(&self) -> String {
        format!("https://{}:{API_PORT}", self.api)
    }
}

impl Node {
    /// What the node's pods use as their gateway.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        nth(self.pods, 1)
    }

    /// Where the node's service proxy lives.
    pub(crate) fn proxy(&self) -> Ipv4Addr {
        nth(self.pods, 2)
    }
}

fn cluster(name: &str, index: u8, primary: bool) -> Cluster {
    let pods = Ipv4Net::new_assert(Ipv4Addr::new(10, 11 + 10 * index, 0, 0), 16);
    let gateway = Ipv4Addr::new(192, 168, 97, 248 + index);
    let node = |n: u8| Node {
        name: format!("{name}-{n}"),
        address: Ipv4Addr::new(192, 168, 97, 10 * (index + 1) + n),
        pods: Ipv4Net::new_assert(Ipv4Addr::new(10, 11 + 10 * index, n, 0), 24),
        announces: (n == 1).then_some(gateway),
    };
    Cluster {
        name: name.to_owned(),
        pods,
        services: Ipv4Net::new_assert(Ipv4Addr::new(172, 21 + index, 0, 0), 16),
        api: Ipv4Addr::new(192, 168, 97, 2 + index),
        gateway,
        nodes: vec![node(1), node(2)],
        primary,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_networks_are_those_of_the_documents() {
        let plan = Plan::new(Topology::MultiPrimary);
        let [east, west] = &plan.clusters[..] else { panic!("two clusters") };
        assert_eq!(
            (east.pods.to_string(), west.pods.to_string()),
            ("10.11.0.0/16".into(), "10.21.0.0/16".into())
        );
        assert_eq!(east.services.to_string(), "172.21.0.0/16");
        assert_eq!(west.services.to_string(), "172.22.0.0/16");
        assert_eq!(east.dns().to_string(), "172.21.0.10");
        assert_eq!(west.nodes[1].gateway().to_string(), "10.21.2.1");
    }

    #[test]
    fn no_address_of_the_joining_network_is_given_twice() {
        let plan = Plan::new(Topology::PrimaryRemote);
        let mut seen = HashSet::from([WORLD]);
        for cluster in &plan.clusters {
            let nodes = cluster.nodes.iter().map(|node| node.address);
            for address in nodes.chain([cluster.api, cluster.gateway]) {
                assert!(UNDERLAY.contains(&address) && seen.insert(address), "{address}");
            }
            assert!(cluster.nodes.iter().all(|node| cluster.pods.contains(&node.pods)));
        }
        assert_eq!(plan.primary_of(&plan.clusters[1]).name, "east");
    }
}
