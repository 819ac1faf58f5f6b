//! The binary's roles: reads the configuration, builds the parts of a role, wires them and runs them until it is asked to
//! stop. It contains no data plane logic.

pub mod cli;
pub mod config;
mod heap;
mod role;
mod runtime;
mod wiring;
