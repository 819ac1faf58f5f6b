//! From a cluster's objects to the resources that its agents are sent, one file per kind. Pure: objects in, messages out.

pub(crate) mod address;
pub(crate) mod authorization;
pub(crate) mod gateway;
pub(crate) mod mesh_config;
pub(crate) mod peer_authentication;
pub(crate) mod resource;
pub(crate) mod service;
pub(crate) mod service_entry;
pub(crate) mod view;
pub(crate) mod waypoint;
pub(crate) mod workload;
