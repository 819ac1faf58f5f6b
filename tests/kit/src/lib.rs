//! Scripted peers, networks of namespaces and probes for tests. A scripted peer sends and expects the reference's raw
//! bytes, never the project's own implementation of the other side, so that a mistake shared by both sides shows.

pub mod binaries;
pub mod hbone;
pub mod istiod;
pub mod kube;
pub mod lab;
pub mod logs;
pub mod pki;
pub mod probe;
pub mod process;
pub mod random;
pub mod tls;
pub mod two_nodes;
pub mod wait;
pub mod zds;
