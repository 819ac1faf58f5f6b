//! What every namespace has, and what happens to one that is deleted.

use serde_json::{Value, json};

use super::Settings;
use crate::api::store::{Key, Tx};
use crate::api::verbs::{self, Context, Deletion};
use crate::manifest::{Kind, object};

/// Gives living namespaces their default account and CA, and empties dying ones.
pub(super) fn reconcile(tx: &mut Tx<'_>, context: &Context<'_>, settings: &Settings) {
    let Some(kind) = Kind::named("Namespace") else {
        return;
    };
    for namespace in tx.list(kind, None) {
        let name = object::name(&namespace);
        if object::is_deleting(&namespace) {
            empty(tx, context, &Key::new(kind, "", name));
            continue;
        }
        ensure(tx, context, "ServiceAccount", name, json!({"metadata": {"name": "default"}}));
        if let Some(pem) = &settings.ca_pem {
            let map = json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": pem}});
            ensure(tx, context, "ConfigMap", name, map);
        }
    }
}

fn ensure(tx: &mut Tx<'_>, context: &Context<'_>, kind: &str, namespace: &str, wanted: Value) {
    let Some(kind) = Kind::named(kind) else {
        return;
    };
    if tx.get(&Key::new(kind, namespace, object::name(&wanted))).is_none()
        && let Err(error) = verbs::create(tx, context, kind, Some(namespace), wanted)
    {
        tracing::warn!(namespace, %error, "cannot create the default objects of a namespace");
    }
}

/// Deletes what is in a namespace; pods that run go first through their kubelet, and the namespace goes last.
fn empty(tx: &mut Tx<'_>, context: &Context<'_>, namespace: &Key) {
    let content: Vec<Key> =
        tx.all().into_iter().map(|(key, _)| key).filter(|key| key.namespace == namespace.name).collect();
    for key in &content {
        // Each key was just listed under the same lock, so there is nothing to refuse.
        let _ = verbs::delete(tx, context, key, &Deletion::default());
    }
    let is_empty = tx.all().iter().all(|(key, _)| key.namespace != namespace.name);
    if is_empty {
        tx.remove(namespace);
    }
}
