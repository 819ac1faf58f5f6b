//! Names of the resource types on the ADS stream. Owns the strings, not their handling.

/// Workloads and services.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// Authorization policies.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
