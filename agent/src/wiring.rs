//! Where the floors meet: implementations of the traits that lower crates define, over the parts that others own.

pub(crate) mod config_dump;
pub(crate) mod control;
pub(crate) mod discovery;
pub(crate) mod metrics;
pub(crate) mod names;
pub(crate) mod own;
pub(crate) mod pods;
pub(crate) mod trust;
pub(crate) mod world;
