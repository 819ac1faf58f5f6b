//! Listeners: binding, the accept loop, what a connection gets before it is served (descriptor, handshake slot), and the
//! lifecycle of the tasks of one pod or gateway. Knows no protocol.

mod acceptor;
mod admission;
mod handover;
mod handshake_queue;
mod handshake_slots;
mod lifecycle;
mod listener;
mod placement;
mod source;

pub(crate) use admission::Admission;
pub(crate) use handshake_slots::{HandshakeSlots, SlotPermit};
pub(crate) use lifecycle::{Active, Carrier, Lifecycle};
pub(crate) use listener::Accepted;
pub use listener::{BoundListener, Listeners};
pub(crate) use placement::Placement;
