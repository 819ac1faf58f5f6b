//! `certificates` of the dump: managed certificates with their state and chain.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::json::Json;
use super::{CertificateView, Filter, PemView};
use crate::Each;

/// Writes the list.
pub(super) async fn list(all: Each<'_, CertificateView>, filter: &Filter, json: &mut Json) {
    json.open(b'[');
    for view in all {
        if fits(filter, &view.identity) {
            json.item();
            json.value(&one(&view));
            json.send_if_full().await;
        }
        json.yield_if_long().await;
    }
    json.close(b']');
}

/// For the filter, a certificate has the namespace and name of its service account.
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
