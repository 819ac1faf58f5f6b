//! State that connections share: [`ProxyContext`] of the process, [`PodContext`] of one pod, and the recheck of a
//! pod's open connections when policies change. Knows no protocol.

mod pod;
mod proxy;
mod recheck;

pub(crate) use pod::PodContext;
pub use proxy::ProxyContext;
