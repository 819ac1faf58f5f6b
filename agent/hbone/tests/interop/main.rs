//! Both ends of a tunnel against other implementations of HTTP/2 and TLS, over sockets: whole connections of applications
//! through the copy, their ends, half-closes and resets.
#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod applications;
mod hyper_peer;
mod ours;
#[path = "../support/pair.rs"]
mod pair;
#[cfg(feature = "programs")]
mod programs;
#[path = "../support/tls.rs"]
mod tls;
