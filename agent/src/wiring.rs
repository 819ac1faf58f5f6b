//! Where the floors meet: implementations of the traits that lower crates define, over the parts that others own.

pub(crate) mod agent_pod;
pub(crate) mod application_mark;
pub(crate) mod config_dump;
pub(crate) mod control;
pub(crate) mod descriptors;
pub(crate) mod discovery;
pub(crate) mod gateway_listeners;
pub(crate) mod handover;
pub(crate) mod host_resolver;
pub(crate) mod metrics;
pub(crate) mod pods;
pub(crate) mod proxy_context;
pub(crate) mod socket_options;
pub(crate) mod trust;
