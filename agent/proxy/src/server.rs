//! The server side of a tunnel, for the pod's HBONE port and for the gateway's: proves the peer, then drives its streams.
//! Knows nothing of what a stream is for.

mod drive;
mod prove;

pub(crate) use drive::drive;
pub(crate) use prove::{in_slot, prove};
