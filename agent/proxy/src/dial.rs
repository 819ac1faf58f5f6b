//! Connections to upstreams: tunnels to peers, TCP to the pod's application, and adapters of their byte streams. Does
//! not choose the upstream.

pub(crate) mod app;
pub(crate) mod client_reset;
pub(crate) mod linger;
pub(crate) mod local_source;
pub(crate) mod revocable;
mod tunnel;

pub(crate) use tunnel::Dialer;
