//! The network namespaces of the world and what joins them: one bridge between the clusters, nodes and API servers on
//! it, a namespace for each node's service proxy. Pods come later, from the kubelets.
//!
//! Nothing routes from one cluster's pods to the other's: a node knows the pods of its own cluster and the bridge.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Context;
use ipnet::{IpNet, Ipv4Net};
use isthmus_sys::netns::Netns;
use isthmus_sys::{route, sysctl};

use crate::plan::{Cluster, Node, Plan, UNDERLAY, WORLD};
use playground_node::masquerade;
use playground_node::pod_network::{host, join_pod_side};

/// The bridge between the clusters.
pub(crate) const BRIDGE: &str = "underlay";

/// The namespaces, by the names of the plan.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// The world's own: holds the bridge.
    pub(crate) underlay: Netns,
    /// Of the API servers, by cluster.
    pub(crate) api: BTreeMap<String, Netns>,
    /// Of the nodes.
    pub(crate) nodes: BTreeMap<String, Netns>,
    /// Of the nodes' service proxies, by node.
    pub(crate) proxies: BTreeMap<String, Netns>,
}

/// Builds everything in the calling thread's namespace, which becomes the one of the bridge.
pub(crate) fn build(plan: &Plan) -> anyhow::Result<Namespaces> {
    let underlay = Netns::current()?;
    route::add_bridge(&underlay, BRIDGE)?;
    route::add_address(&underlay, BRIDGE, on(UNDERLAY, WORLD))?;
    let mut all =
        Namespaces { underlay, api: BTreeMap::new(), nodes: BTreeMap::new(), proxies: BTreeMap::new() };
    for cluster in &plan.clusters {
        let api = Netns::create()?;
        plug_in(&all.underlay, &api, "eth0", &format!("{}-api", cluster.name), cluster.api)?;
        all.api.insert(cluster.name.clone(), api);
        for node in &cluster.nodes {
            let made = build_node(&all.underlay, cluster, node);
            let (netns, proxy) = made.with_context(|| format!("cannot build node {}", node.name))?;
            all.nodes.insert(node.name.clone(), netns);
            all.proxies.insert(node.name.clone(), proxy);
        }
    }
    Ok(all)
}

fn build_node(underlay: &Netns, cluster: &Cluster, node: &Node) -> anyhow::Result<(Netns, Netns)> {
    let netns = Netns::create()?;
    sysctl::write(&netns, "net/ipv4/ip_forward", "1")?;
    plug_in(underlay, &netns, "eth0", &node.name, node.address)?;
    // The pods' gateway; each pod's interface gets a route, none gets an address.
    route::add_address(&netns, "lo", host(node.gateway()))?;
    for other in cluster.nodes.iter().filter(|other| other.name != node.name) {
        route::add_route(&netns, other.pods.into(), Some(other.address.into()), None)?;
    }
    masquerade::program(&netns, cluster.pods, UNDERLAY, node.address)?;
    let proxy = build_proxy(underlay, &netns, cluster, node)?;
    Ok((netns, proxy))
}

/// The service proxy is not in the node's own namespace: what it forwards would look like the kubelet's probes there.
fn build_proxy(underlay: &Netns, node_ns: &Netns, cluster: &Cluster, node: &Node) -> anyhow::Result<Netns> {
    let proxy = Netns::create()?;
    route::add_veth(node_ns, "services", &proxy, "eth0")?;
    route::set_up(node_ns, "services")?;
    route::set_up(&proxy, "eth0")?;
    route::add_address(&proxy, "eth0", host(node.proxy()))?;
    join_pod_side(node_ns, "services", &proxy, node.gateway(), node.proxy())?;
    // On a loopback interface a whole range becomes local: a service that nothing serves yet is refused, not lost.
    let services = cluster.services;
    route::add_address(&proxy, "lo", IpNet::V4(Ipv4Net::new(services.broadcast(), services.prefix_len())?))?;
    let proxy_address = IpAddr::from(node.proxy());
    route::add_route(node_ns, cluster.services.into(), Some(proxy_address), Some("services"))?;
    if let Some(address) = node.announces {
        plug_in(underlay, &proxy, "lb0", &format!("{}-lb", cluster.name), address)?;
    }
    Ok(proxy)
}

/// Puts a namespace on the bridge.
fn plug_in(
    underlay: &Netns,
    netns: &Netns,
    ifname: &str,
    port: &str,
    address: Ipv4Addr,
) -> anyhow::Result<()> {
    route::add_veth(underlay, port, netns, ifname)?;
    route::set_master(underlay, port, BRIDGE)?;
    route::set_up(underlay, port)?;
    route::add_address(netns, ifname, on(UNDERLAY, address))?;
    route::set_up(netns, ifname)?;
    Ok(())
}

fn on(net: Ipv4Net, address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, net.prefix_len()))
}
