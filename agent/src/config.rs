//! Settings of the roles, read once from the environment. The names are ztunnel's and istio-cni's, so that their
//! charts work unchanged, and every bad value is reported at once. No other crate reads the environment.

pub mod agent;
pub mod deployed;
pub mod flags;
pub mod gateway;
pub mod install;
mod kubeconfig;
pub mod log;
pub mod mesh;
pub mod node;
mod pod_labels;
pub mod source;
pub mod trust;
