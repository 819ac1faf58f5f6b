//! Tests of the record layer: against the RFC's vectors, against rustls, and against itself.

mod fuzz;
mod handshake;
mod limits;
mod messages;
mod peers;
mod records;
pub(crate) mod support;
mod vectors;
