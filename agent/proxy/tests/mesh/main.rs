//! Pods and gateways that talk to each other over real sockets on loopback addresses, with certificates from the test
//! CA. Needs no privilege: nothing is redirected, listeners are handed in.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod gateway;
mod gateway_retry;
mod hbone;
mod inbound;
mod life;
mod log;
mod plaintext;
mod policy;
mod retry;
mod revocation;
mod routes;
mod script;
mod test_mesh;
