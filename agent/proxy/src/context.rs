//! What connections share: [`ProxyContext`] of the whole process, [`PodContext`] of one pod. Knows no protocol.

mod pod;
mod proxy;
mod recheck;

pub(crate) use pod::PodContext;
pub use proxy::ProxyContext;
