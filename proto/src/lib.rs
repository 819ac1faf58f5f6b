//! Every contract Isthmus speaks on a wire: delta xDS, workload and authorization resources, ZDS, certificate signing
//! (feature `grpc`, and `server` for the server halves), the event from the CNI plugin to the node role (feature `cni`),
//! and what one agent hands to its successor (feature `handover`). It owns shapes and names only; what they mean is the vocabulary crate's.

#[cfg(feature = "cni")]
pub mod cni;
#[cfg(feature = "cni")]
pub mod enroll;
#[cfg(feature = "grpc")]
pub mod type_url;

/// Delta ADS: the part of `envoy.service.discovery.v3` that the agent needs.
#[cfg(feature = "grpc")]
pub mod discovery {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::use_self,
        clippy::too_many_lines
    )]
    tonic::include_proto!("envoy.service.discovery.v3");
}

/// Workloads and services: `istio.workload`.
#[cfg(feature = "grpc")]
pub mod workload {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::use_self,
        clippy::too_many_lines
    )]
    tonic::include_proto!("istio.workload");
}

/// Authorization policies: `istio.security`.
#[cfg(feature = "grpc")]
pub mod security {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::use_self,
        clippy::too_many_lines
    )]
    tonic::include_proto!("istio.security");
}

/// ZDS between the node role and the agent: `istio.workload.zds`.
#[cfg(feature = "grpc")]
pub mod zds {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::use_self,
        clippy::too_many_lines
    )]
    tonic::include_proto!("istio.workload.zds");
}

/// Certificate signing: `istio.v1.auth`.
#[cfg(feature = "grpc")]
pub mod ca {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::use_self,
        clippy::too_many_lines
    )]
    tonic::include_proto!("istio.v1.auth");
}

/// What goes between two agents of ours that follow each other.
#[cfg(feature = "handover")]
pub mod handover {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::too_many_lines)]
    // Without `tonic::include_proto!`, as there is no service.
    include!(concat!(env!("OUT_DIR"), "/isthmus.handover.rs"));
}
