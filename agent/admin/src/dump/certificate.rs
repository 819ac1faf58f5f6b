//! Certificates of the dump: what is managed, in which state, and what the chain says of itself.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::json::Json;
use super::{CertificateView, Filter, PemView};
use crate::Each;

/// The list, as it is lent.
pub(super) async fn list(all: Each<'_, CertificateView>, filter: &Filter, json: &mut Json) {
    json.open(b'[');
    for view in all {
        if fits(filter, &view.identity) {
            json.item();
            json.value(&one(&view));
            json.breathe().await;
        }
        json.look().await;
    }
    json.close(b']');
}

/// A certificate's namespace and name are those of the service account.
fn fits(filter: &Filter, identity: &str) -> bool {
    let mut parts = identity.rsplit('/');
    let (account, _, namespace) = (parts.next(), parts.next(), parts.next());
    filter.fits(namespace.unwrap_or_default(), account.unwrap_or_default())
}

fn one(view: &CertificateView) -> Value {
    json!({
        "identity": view.identity,
        "state": view.state,
        "certChain": view.chain.iter().map(pem).collect::<Vec<_>>(),
        "rootCerts": view.roots.iter().map(pem).collect::<Vec<_>>(),
    })
}

fn pem(pem: &PemView) -> Value {
    json!({
        "pem": STANDARD.encode(&pem.pem),
        "serialNumber": pem.serial,
        "validFrom": pem.valid_from,
        "expirationTime": pem.expires,
    })
}
