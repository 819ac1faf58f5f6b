//! The DNS proxy of one pod: A and AAAA queries for names of the mesh are answered from the state, all others are
//! forwarded unchanged to the server that the application addressed.
//!
//! `query` and `response` are pure; `relay` talks to DNS servers; `server` owns the sockets and ties them
//! together. It must not know of xDS or of how pods come and go.

#[cfg(test)]
mod fuzz;
mod listeners;
mod metrics;
mod query;
mod relay;
mod resolver;
mod response;
mod server;

pub use listeners::{BindError, Listeners};
pub use metrics::Metrics;
pub use resolver::{LookupError, Resolver};
pub use server::{Config, DnsProxy};
