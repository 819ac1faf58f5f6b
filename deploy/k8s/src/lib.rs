//! A small Kubernetes for the playground: manifests as JSON objects, an API server with the controllers that every
//! cluster has, and the client that all parts of the playground use.
//!
//! It knows Kubernetes' own rules only. What a mesh checks of its objects is given to the API server by its caller.

pub mod api;
pub mod client;
pub mod manifest;
pub mod mirror;
pub mod tls;
