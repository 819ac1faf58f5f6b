//! State that connections share: [`ProxyContext`] of the process, [`PodContext`] of one pod with its open tunnels, and the
//! recheck of a pod's open connections when policies change. Knows no protocol.

mod leave;
mod open_tunnels;
mod pod;
mod proxy;
mod recheck;

pub(crate) use open_tunnels::{AcceptedTunnel, LeftConnection, OpenPair};
pub(crate) use pod::PodContext;
pub use proxy::ProxyContext;
