//! The token that the plugin shows to the API server. One that is mounted into this pod is void as soon as the pod is
//! deleted, and with it every start of a pod on the node; so the role asks for one that is not bound to a pod. Owns when
//! that is done again; must not know where the token is written.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::kubeconfig::account_of;

/// How long a token shall be valid: so long, minus the renewal, this role may be away.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Least time until a token is replaced.
const SOONEST: Duration = Duration::from_secs(60);
/// Pause before a request that failed is repeated.
const AGAIN: Duration = Duration::from_secs(60);
/// The same when the permission is missing: it may be granted later.
const WITHOUT_PERMISSION: Duration = Duration::from_secs(3600);
/// Deadline of the request.
const ASK: Duration = Duration::from_secs(5);

/// Where tokens come from.
pub(crate) struct Tokens {
    client: Option<Client>,
    namespace: String,
    /// The account; `None`: that of the mounted token.
    account: Option<String>,
    mounted: PathBuf,
    requested: Option<String>,
    next: Instant,
}

impl Tokens {
    /// Tokens of an account in the namespace of this role. `folder` is where the own account is mounted.
    pub(crate) fn new(
        client: Option<Client>,
        namespace: String,
        account: Option<String>,
        folder: &Path,
    ) -> Self {
        let mounted = folder.join("token");
        Self { client, namespace, account, mounted, requested: None, next: Instant::now() }
    }

    /// When the token should be looked at again.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// The token to be written now: the requested one, or the mounted one where it cannot be had.
    ///
    /// # Errors
    /// When there is neither.
    pub(crate) async fn current(&mut self) -> std::io::Result<String> {
        let now = Instant::now();
        if now >= self.next {
            self.next = now + self.request().await;
        }
        match &self.requested {
            Some(token) => Ok(token.clone()),
            None => std::fs::read_to_string(&self.mounted).map_err(|error| {
                std::io::Error::new(error.kind(), format!("{}: {error}", self.mounted.display()))
            }),
        }
    }

    /// Asks for a token. The time until it is to be asked again.
    async fn request(&mut self) -> Duration {
        let mounted = || std::fs::read_to_string(&self.mounted).ok().and_then(|token| account_of(&token));
        let (Some(client), Some(account)) = (&self.client, self.account.clone().or_else(mounted)) else {
            return AGAIN;
        };
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), &self.namespace);
        let spec = TokenRequestSpec {
            expiration_seconds: i64::try_from(LIFETIME.as_secs()).ok(),
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let params = PostParams::default();
        let asked = api.create_token_request(&account, &params, &request);
        let why = match tokio::time::timeout(ASK, asked).await {
            Ok(Ok(TokenRequest { status: Some(status), .. })) => {
                let until = SystemTime::from(status.expiration_timestamp.0);
                let lifetime = until.duration_since(SystemTime::now()).unwrap_or_default();
                if self.requested.is_none() {
                    tracing::info!(%account, ?lifetime, "the plugin has a token that outlives this pod");
                }
                self.requested = Some(status.token);
                return renewal(lifetime);
            }
            Ok(Ok(_)) => "an answer without a token".to_owned(),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                tracing::warn!(
                    %account, namespace = %self.namespace, status = status.code,
                    "no token that outlives this pod: create on serviceaccounts/token of this account is needed; while \
                     this pod is replaced no other pod can start on the node",
                );
                self.requested = None;
                return WITHOUT_PERMISSION;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {ASK:?}"),
        };
        // An earlier token serves on until it expires.
        tracing::warn!(%account, error = %why, retry_in = ?AGAIN, "token for the plugin not renewed");
        AGAIN
    }
}

/// A token is replaced after half of its life, so that this role may be away for the other half.
fn renewal(lifetime: Duration) -> Duration {
    (lifetime / 2).max(SOONEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_after_half_of_its_life() {
        for (lifetime, want) in [(86400, 43200), (3600, 1800), (100, 60), (0, 60)] {
            assert_eq!(renewal(Duration::from_secs(lifetime)), Duration::from_secs(want), "{lifetime}");
        }
    }
}
