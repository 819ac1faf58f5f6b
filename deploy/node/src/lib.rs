//! What runs on a node of the playground besides the agent: the kubelet with its CNI plugin and its pods' first program,
//! kube-proxy, the cluster's DNS server, and the rule that masquerades pods.
//!
//! It knows a cluster through the API server only, and it knows no mesh.

pub mod cluster_dns;
pub mod cni_ptp;
mod endpoints;
pub mod enter;
pub mod kube_proxy;
pub mod kubelet;
pub mod masquerade;
pub mod pod_init;
pub mod pod_network;
pub mod program;
