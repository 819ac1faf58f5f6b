//! Service-account tokens: made by TokenRequest, checked by TokenReview and by the server itself. They are JWTs that an
//! Ed25519 key of this cluster signs; the key lives as long as the process.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use rustls::SignatureScheme;
use serde_json::{Value, json};

use super::error::Error;
use super::store::{Key, Tx};
use super::text::{time, uuid};
use crate::manifest::{Kind, object};
use crate::tls;

/// The audience of the API server itself, and the issuer of its tokens.
pub(super) const API_AUDIENCE: &str = "https://kubernetes.default.svc.cluster.local";
/// Seconds that a token is valid for when the request gives none.
const DEFAULT_LIFE: u64 = 3600;
/// Shortest and longest life that can be asked for, as in Kubernetes.
const LIFE: (u64, u64) = (600, 1 << 32);

/// Makes and checks the tokens of one cluster.
pub(super) struct Issuer {
    key: KeyPair,
}

/// The user of a token, or of the admin token.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct User {
    /// `status.user` of a TokenReview.
    pub(super) info: Value,
    /// The audiences that the token was made for and the reader accepts.
    pub(super) audiences: Vec<String>,
}

// === impl Issuer ===

impl Issuer {
    /// An issuer with a new key.
    ///
    /// # Errors
    /// When no key can be made.
    pub(super) fn new() -> Result<Self, rcgen::Error> {
        Ok(Self { key: KeyPair::generate_for(&PKCS_ED25519)? })
    }

    /// Answers a TokenRequest for an account.
    ///
    /// # Errors
    /// When the account, or the pod that the token is bound to, is not there or does not fit.
    pub(super) fn issue(
        &self,
        tx: &Tx<'_>,
        namespace: &str,
        account: &str,
        mut request: Value,
        now: SystemTime,
    ) -> Result<Value, Error> {
        let found = find(tx, "ServiceAccount", namespace, account)?;
        let life = request.pointer("/spec/expirationSeconds").and_then(Value::as_u64);
        let life = life.unwrap_or(DEFAULT_LIFE).clamp(LIFE.0, LIFE.1);
        let mut audiences: Vec<String> =
            object::texts(&request, "/spec/audiences").map(str::to_owned).collect();
        if audiences.is_empty() {
            audiences.push(API_AUDIENCE.to_owned());
        }
        let mut about = json!({
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": object::uid(&found)},
        });
        if request.pointer("/spec/boundObjectRef").is_some_and(Value::is_object) {
            bind(tx, &mut about, namespace, account, &request["spec"]["boundObjectRef"])?;
        }
        let seconds = since_epoch(now);
        let claims = json!({
            "iss": API_AUDIENCE, "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "aud": audiences, "jti": uuid(),
            "iat": seconds, "nbf": seconds, "exp": seconds + life, "kubernetes.io": about,
        });
        request["apiVersion"] = "authentication.k8s.io/v1".into();
        request["kind"] = "TokenRequest".into();
        request["spec"]["audiences"] = json!(audiences);
        request["spec"]["expirationSeconds"] = life.into();
        let expires = time(now + Duration::from_secs(life));
        request["status"] = json!({"token": self.sign(&claims)?, "expirationTimestamp": expires});
        Ok(request)
    }

    /// The user of a token, if this server issued it and it is still valid, made for one of `audiences`, and its account
    /// and pod still exist.
    ///
    /// # Errors
    /// With the reason in words.
    pub(super) fn review(
        &self,
        tx: &Tx<'_>,
        token: &str,
        audiences: &[String],
        now: SystemTime,
    ) -> Result<User, String> {
        let claims = self.verify(token)?;
        let number = |name: &str| claims.get(name).and_then(Value::as_u64).unwrap_or_default();
        let seconds = since_epoch(now);
        if seconds >= number("exp") {
            return Err("the token has expired".to_owned());
        }
        // Clocks of one machine do not differ; whole seconds may.
        if seconds + 1 < number("nbf") {
            return Err("the token is not valid yet".to_owned());
        }
        let made_for: Vec<&str> = object::texts(&claims, "/aud").collect();
        let accepted: Vec<String> =
            audiences.iter().filter(|wanted| made_for.contains(&wanted.as_str())).cloned().collect();
        if accepted.is_empty() {
            return Err(format!("the token is for {made_for:?}, not for {audiences:?}"));
        }
        Ok(User { info: user(tx, &claims)?, audiences: accepted })
    }

    fn sign(&self, claims: &Value) -> Result<String, Error> {
        let header = json!({"alg": "EdDSA", "typ": "JWT"});
        let [header, payload] = [&header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
        let message = format!("{header}.{payload}");
        let signature = self.key.sign(message.as_bytes());
        let signature = signature.map_err(|error| Error::BadRequest(format!("cannot sign: {error}")))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that our key has signed.
    fn verify(&self, token: &str) -> Result<Value, String> {
        let malformed = || "the token is no JWT of this cluster".to_owned();
        let (message, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (_, payload) = message.split_once('.').ok_or_else(malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| malformed())?;
        let provider = tls::provider();
        let schemes = provider.signature_verification_algorithms.mapping;
        let ed25519 = schemes.iter().find(|(scheme, _)| *scheme == SignatureScheme::ED25519);
        let algorithm = ed25519.and_then(|(_, algorithms)| algorithms.first()).ok_or_else(malformed)?;
        algorithm
            .verify_signature(self.key.der_bytes(), message.as_bytes(), &signature)
            .map_err(|_| "the token's signature is not this cluster's".to_owned())?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed())?;
        serde_json::from_slice(&payload).map_err(|_| malformed())
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").finish_non_exhaustive()
    }
}

/// Adds the pod, and its node, that a token is bound to.
fn bind(tx: &Tx<'_>, about: &mut Value, namespace: &str, account: &str, to: &Value) -> Result<(), Error> {
    let (kind, name, uid) = (object::text(to, "/kind"), object::text(to, "/name"), object::text(to, "/uid"));
    if kind != "Pod" {
        let problem = format!("spec.boundObjectRef.kind: {kind:?} is not supported, only \"Pod\"");
        return Err(Error::BadRequest(problem));
    }
    let pod = find(tx, "Pod", namespace, name)?;
    let conflict =
        |problem: String| Error::BadRequest(format!("spec.boundObjectRef: pod {name:?} {problem}"));
    if !uid.is_empty() && uid != object::uid(&pod) {
        return Err(conflict(format!("has uid {:?}, not {uid:?}", object::uid(&pod))));
    }
    let used = object::text(&pod, "/spec/serviceAccountName");
    if used != account {
        return Err(conflict(format!("uses service account {used:?}, not {account:?}")));
    }
    about["pod"] = json!({"name": name, "uid": object::uid(&pod)});
    let node = object::text(&pod, "/spec/nodeName");
    if !node.is_empty() {
        let uid = find(tx, "Node", "", node).map(|node| object::uid(&node).to_owned()).unwrap_or_default();
        about["node"] = json!({"name": node, "uid": uid});
    }
    Ok(())
}

/// `status.user` for the claims of a good token, if what it is bound to still exists.
fn user(tx: &Tx<'_>, claims: &Value) -> Result<Value, String> {
    let about = &claims["kubernetes.io"];
    let namespace = object::text(about, "/namespace");
    let still = |what: &str, kind: &str| {
        let (name, uid) =
            (object::text(about, &format!("/{what}/name")), object::text(about, &format!("/{what}/uid")));
        let found = find(tx, kind, namespace, name).ok();
        match found.filter(|found| object::uid(found) == uid) {
            Some(_) => Ok((name.to_owned(), uid.to_owned())),
            None => Err(format!("{what} {namespace}/{name} of the token does not exist any more")),
        }
    };
    let (_, uid) = still("serviceaccount", "ServiceAccount")?;
    let mut extra = json!({"authentication.kubernetes.io/credential-id": [format!("JTI={}", object::text(claims, "/jti"))]});
    if about.get("pod").is_some() {
        let (name, uid) = still("pod", "Pod")?;
        extra["authentication.kubernetes.io/pod-name"] = json!([name]);
        extra["authentication.kubernetes.io/pod-uid"] = json!([uid]);
    }
    for (field, key) in [("name", "node-name"), ("uid", "node-uid")] {
        if let Some(value) = about.pointer(&format!("/node/{field}")) {
            extra[format!("authentication.kubernetes.io/{key}")] = json!([value]);
        }
    }
    let groups =
        ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"];
    Ok(json!({"username": claims["sub"], "uid": uid, "groups": groups, "extra": extra}))
}

fn find(tx: &Tx<'_>, kind: &str, namespace: &str, name: &str) -> Result<std::sync::Arc<Value>, Error> {
    let kind = Kind::named(kind).ok_or_else(|| Error::NoSuchPath(kind.to_owned()))?;
    tx.get(&Key::new(kind, namespace, name)).ok_or_else(|| Error::NotFound(kind, name.to_owned()))
}

fn since_epoch(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
