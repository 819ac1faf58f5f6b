//! The root of the house: reads the configuration, builds the parts, wires them together and runs them until told to
//! stop. It holds no logic of the mesh of its own.

pub mod cli;
pub mod config;
mod role;
mod runtime;
mod wiring;
