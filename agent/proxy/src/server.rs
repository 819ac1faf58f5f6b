//! The server side of a tunnel, for a pod's HBONE port and a gateway's: authenticates the peer, then drives the
//! tunnel and spawns its streams. Knows nothing of what a stream is for.

mod drive;
mod prove;

pub(crate) use drive::{drive, run};
pub(crate) use prove::{in_slot, prove};
