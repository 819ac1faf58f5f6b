//! Towards upstreams: tunnels to peers, the application of the pod, and the byte streams between. Decides nothing about
//! where to connect.

pub(crate) mod app;
pub(crate) mod client_reset;
pub(crate) mod linger;
pub(crate) mod revocable;
mod tunnel;

pub(crate) use tunnel::Dialer;
