//! Scripted peers, worlds and probes for tests. Each peer speaks raw bytes from the reference rather than through the
//! project's own other half.

pub mod binaries;
pub mod hbone;
pub mod istiod;
pub mod kube;
pub mod lab;
pub mod logs;
pub mod pki;
pub mod probe;
pub mod process;
pub mod two_nodes;
pub mod wait;
pub mod zds;
