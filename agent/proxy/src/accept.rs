//! Listeners: binding, the accept loop, the limit of handshakes in progress, and the lifecycle of the tasks of one
//! pod or gateway. Knows no protocol.

mod acceptor;
mod handover;
mod handshake_slots;
mod lifecycle;
mod listener;
mod placement;

pub(crate) use handshake_slots::{HandshakeSlots, SlotPermit};
pub(crate) use lifecycle::Lifecycle;
pub(crate) use listener::Accepted;
pub use listener::{BoundListener, Listeners};
pub(crate) use placement::Placement;
