//! A small control plane.

mod authorization;
mod peer_authentication;

use serde_json::Value;

pub(crate) use authorization::Invalid;

/// Checks an AuthorizationPolicy as it is written.
///
/// # Errors
/// With the field that is wrong.
pub(crate) fn check_authorization(policy: &Value) -> Result<(), Invalid> {
    authorization::translate(policy, "").map(|_| ())
}

/// Checks a PeerAuthentication as it is written.
///
/// # Errors
/// With the field that is wrong.
pub(crate) fn check_peer_authentication(policy: &Value) -> Result<(), Invalid> {
    peer_authentication::check(policy)
}
