//! What clients are served: delta xDS and certificates over gRPC, and a debug endpoint over HTTP.

pub(crate) mod caller;
pub(crate) mod grpc;
pub mod pushes;
pub(crate) mod session;
