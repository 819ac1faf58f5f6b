//! One version of the configuration: the objects of every cluster, and the resources that its agents are served. The
//! controller publishes it; the services read it and never change it.

use std::collections::BTreeMap;

use crate::clusters::{ClusterId, Clusters};
use crate::translate::view::View;

/// An immutable version of the configuration.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// The objects that it was made from.
    pub(crate) clusters: Clusters,
    /// The resources for the agents of each cluster.
    pub(crate) views: BTreeMap<ClusterId, View>,
    /// Its version: grows by one with each snapshot.
    pub(crate) number: u64,
    /// The trust domain of every identity.
    pub(crate) trust_domain: String,
}
