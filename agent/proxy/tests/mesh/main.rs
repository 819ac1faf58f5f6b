//! Pods and gateways that connect to each other over sockets on loopback addresses, with certificates of the test CA.
//! Needs no privilege: listeners are passed in, nothing is redirected.

#![expect(clippy::unwrap_used, reason = "test code")]

mod access_log;
mod gateway;
mod gateway_retry;
mod hbone;
mod inbound;
mod lifecycle;
mod plaintext;
mod policy;
mod retry;
mod revocation;
mod routes;
mod scripted_peer;
mod test_mesh;
mod threads;
