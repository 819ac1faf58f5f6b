//! Authentication of a caller, by a TokenReview of its bearer token at the cluster that it says it is in, and
//! authorization: which identities it may request certificates for, from the pods on its node.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use serde_json::Value;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::clusters::{ClusterId, Clusters};
use crate::translate::workload::account;
use playground_k8s::client::Client;
use playground_k8s::manifest::object;

/// The audience of tokens for this control plane.
const AUDIENCE: &str = "istio-ca";
/// Where reviews are asked for.
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// A service account of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// A caller whose token is good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The cluster that has reviewed the token.
    pub(crate) cluster: ClusterId,
    /// The token's service account.
    pub(crate) account: Account,
    /// Name and uid of the pod that the token is bound to.
    pub(crate) pod: Option<(String, String)>,
}

/// Reviews tokens.
#[derive(Debug)]
pub(crate) struct Reviewer {
    /// The cluster of callers that do not say.
    pub(crate) own: ClusterId,
    /// The API server of each cluster.
    pub(crate) clients: BTreeMap<ClusterId, Client>,
}

/// Why a caller gets no certificate for an account.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// Neither the account itself nor trusted with those of others.
    #[error("{0} may ask only for its own identity, not for that of {1}")]
    NotTrusted(Account, Account),
    /// A token without a pod says nothing about a node.
    #[error("the token of {0} is not bound to a pod")]
    Unbound(Account),
    /// The pod that the token is bound to is not there.
    #[error("pod {namespace}/{pod} with uid {uid} of the token is not known in cluster {cluster}")]
    UnknownPod {
        /// Namespace of the caller.
        namespace: String,
        /// Name in the token.
        pod: String,
        /// Uid in the token.
        uid: String,
        /// The caller's cluster.
        cluster: ClusterId,
    },
    /// No pod of that account is on the caller's node.
    #[error("no pod of {account} runs on node {node:?} of cluster {cluster}")]
    NotOnNode {
        /// Whose identity was asked for.
        account: Account,
        /// The caller's node.
        node: String,
        /// The caller's cluster.
        cluster: ClusterId,
    },
}

// === impl Account ===

impl Account {
    /// Reads `namespace/name`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/')?;
        let good = |part: &str| !part.is_empty() && !part.contains(['/', ':']);
        (good(namespace) && good(name))
            .then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Reads `spiffe://<trust domain>/ns/<namespace>/sa/<name>` of the given trust domain.
    pub(crate) fn from_identity(identity: &str, trust_domain: &str) -> Option<Self> {
        let path = identity.strip_prefix("spiffe://")?.strip_prefix(trust_domain)?.strip_prefix("/ns/")?;
        let (namespace, name) = path.split_once("/sa/")?;
        Self::parse(&format!("{namespace}/{name}"))
    }
}

impl std::fmt::Display for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "service account {}/{}", self.namespace, self.name)
    }
}

// === impl Reviewer ===

impl Reviewer {
    /// Authenticates a caller.
    ///
    /// # Errors
    /// `Unauthenticated` with the reason; `Unavailable` when the cluster cannot be asked.
    pub(crate) async fn caller(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
        let id = text("clusterid").filter(|id| !id.is_empty());
        let id = id.map_or_else(|| self.own.clone(), |id| ClusterId(id.to_owned()));
        let Some(client) = self.clients.get(&id) else {
            let known: Vec<String> = self.clients.keys().map(ToString::to_string).collect();
            let message = format!("metadata clusterid: {id:?} is none of {known:?}", id = id.0);
            return Err(Status::unauthenticated(message));
        };
        let token = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
        let token =
            token.ok_or_else(|| Status::unauthenticated("metadata authorization: no bearer token"))?;
        let spec = TokenReviewSpec {
            token: Some(token.trim().to_owned()),
            audiences: Some(vec![AUDIENCE.to_owned()]),
        };
        let review = client.create_as(REVIEWS, &TokenReview { spec, ..TokenReview::default() }).await;
        let review = review.map_err(|error| Status::unavailable(format!("cluster {id}: {error}")))?;
        read(&review, id)
    }
}

/// Reads the answer to a review.
fn read(review: &TokenReview, cluster: ClusterId) -> Result<Caller, Status> {
    let status = review.status.clone().unwrap_or_default();
    if status.authenticated != Some(true) {
        let reason = status.error.unwrap_or_default();
        return Err(Status::unauthenticated(format!("cluster {cluster} refuses the token: {reason}")));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let account = account.and_then(|(namespace, name)| Account::parse(&format!("{namespace}/{name}")));
    let Some(account) = account else {
        return Err(Status::unauthenticated(format!("{name:?} is no service account")));
    };
    let extra = |key: &str| {
        let all = user.extra.as_ref()?.get(&format!("authentication.kubernetes.io/{key}"))?;
        all.first().cloned()
    };
    Ok(Caller { cluster, account, pod: extra("pod-name").zip(extra("pod-uid")) })
}

// === impl Caller ===

impl Caller {
    /// Whether the caller may have a certificate for an account: its own, or, when it is the node agent's account,
    /// that of a pod on its node.
    ///
    /// # Errors
    /// With the reason.
    pub(crate) fn may_be(
        &self,
        wanted: &Account,
        trusted: &Account,
        clusters: &Clusters,
    ) -> Result<(), Denied> {
        if self.account == *wanted {
            return Ok(());
        }
        if self.account != *trusted {
            return Err(Denied::NotTrusted(self.account.clone(), wanted.clone()));
        }
        let Some((pod, uid)) = &self.pod else {
            return Err(Denied::Unbound(self.account.clone()));
        };
        let cluster = clusters.cluster(&self.cluster);
        let caller = cluster.and_then(|cluster| cluster.get("Pod", &self.account.namespace, pod));
        let Some(caller) = caller.filter(|pod| object::uid(pod) == uid) else {
            let (namespace, cluster) = (self.account.namespace.clone(), self.cluster.clone());
            return Err(Denied::UnknownPod { namespace, pod: pod.clone(), uid: uid.clone(), cluster });
        };
        let node = object::text(caller, "/spec/nodeName");
        let is_there = |pod: &&Value| {
            object::namespace(pod) == wanted.namespace
                && account(pod) == wanted.name
                && object::text(pod, "/spec/nodeName") == node
                && !matches!(object::text(pod, "/status/phase"), "Succeeded" | "Failed")
        };
        let found =
            !node.is_empty() && cluster.is_some_and(|cluster| cluster.of("Pod").any(|pod| is_there(&pod)));
        if found {
            return Ok(());
        }
        let (account, cluster) = (wanted.clone(), self.cluster.clone());
        Err(Denied::NotOnNode { account, node: node.to_owned(), cluster })
    }
}

#[cfg(test)]
mod tests;
