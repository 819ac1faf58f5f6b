//! The end of objects whose owner is gone.

use std::collections::BTreeSet;

use crate::api::store::Tx;
use crate::api::verbs::{self, Context, Deletion};
use crate::manifest::{Kind, object};

/// Deletes every object that has owners of known kinds, none of which exists. Pods of deployments name a ReplicaSet,
/// which is no object here; the workloads controller looks after those.
pub(super) fn reconcile(tx: &mut Tx<'_>, context: &Context<'_>) {
    let all = tx.all();
    let alive: BTreeSet<&str> = all.iter().map(|(_, object)| object::uid(object)).collect();
    for (key, object) in &all {
        let owners = object::list(object, "/metadata/ownerReferences");
        let known = |owner: &&serde_json::Value| {
            Kind::of(object::text(owner, "/apiVersion"), object::text(owner, "/kind")).is_some()
        };
        let mut known = owners.iter().filter(known).peekable();
        let is_orphan =
            known.peek().is_some() && !known.any(|owner| alive.contains(object::text(owner, "/uid")));
        if is_orphan && !object::is_deleting(object) {
            // Listed under the same lock, so there is nothing to refuse.
            let _ = verbs::delete(tx, context, key, &Deletion::default());
        }
    }
}
