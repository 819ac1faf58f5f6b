//! What a cluster does by itself when objects change: pods for deployments, nodes for pods, addresses for gateways,
//! accounts for namespaces, and the end of what was owned by something that is gone. It runs inside the transaction of
//! the change, until nothing is left to do, so a reader never sees a half-done step.

mod garbage;
mod namespaces;
mod services;
mod workloads;

use std::net::IpAddr;

use super::store::Tx;
use super::verbs::Context;

/// A pass changes something each time or is the last; more than this many would be a fight between controllers.
const PASSES: usize = 32;

/// What the controllers need to know of the cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// Roots of the API server's certificate, published in every namespace.
    pub(super) ca_pem: Option<String>,
    /// External addresses of LoadBalancer services and gateways: `namespace/name` and address.
    pub(super) load_balancers: Vec<(String, IpAddr)>,
}

/// Runs every controller until none changes anything.
pub(super) fn settle(tx: &mut Tx<'_>, context: &Context<'_>, settings: &Settings) {
    for _ in 0..PASSES {
        let before = tx.revision();
        namespaces::reconcile(tx, context, settings);
        garbage::reconcile(tx, context);
        workloads::reconcile(tx, context);
        workloads::schedule(tx);
        services::reconcile(tx, context, settings);
        if tx.revision() == before {
            return;
        }
    }
    tracing::warn!(passes = PASSES, "controllers still change objects after the last pass");
}

#[cfg(test)]
mod tests;
