//! SPIFFE identities in Istio's form: parsing and printing. Verification is in the identity crate.

use std::fmt;
use std::str::FromStr;

use arcstr::literal;

use crate::intern::Interner;
use crate::name::Shared as _;
use crate::name::{Namespace, ServiceAccount, Text};

/// A trust domain, `cluster.local` unless configured.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TrustDomain(Text);

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// Trust domain.
    pub trust_domain: TrustDomain,
    /// Namespace.
    pub namespace: Namespace,
    /// Service account.
    pub service_account: ServiceAccount,
}

/// Text that is not a SPIFFE identity in Istio's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct NotAnIdentity(String);

impl TrustDomain {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// As from text, sharing it with others.
    pub(crate) fn interned(text: &str, texts: &mut Interner) -> Self {
        if text.is_empty() { Self::default() } else { Self(texts.name(text)) }
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self(Text::from_shared(literal!("cluster.local")))
    }
}

impl From<&str> for TrustDomain {
    /// An empty text is the default trust domain, as on the wire.
    fn from(text: &str) -> Self {
        if text.is_empty() { Self::default() } else { Self(text.into()) }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl SpiffeId {
    /// Puts an identity together.
    #[must_use]
    pub fn new(trust_domain: TrustDomain, namespace: Namespace, service_account: ServiceAccount) -> Self {
        Self { trust_domain, namespace, service_account }
    }

    /// The identity without `spiffe://`, as policies name principals.
    #[must_use]
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SpiffeId {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Vec<&str> =
            text.strip_prefix("spiffe://").map(|rest| rest.split('/').collect()).unwrap_or_default();
        match parts.as_slice() {
            [domain, "ns", namespace, "sa", account]
                if !domain.is_empty() && !namespace.is_empty() && !account.is_empty() =>
            {
                Ok(Self::new((*domain).into(), (*namespace).into(), (*account).into()))
            }
            _ => Err(NotAnIdentity(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_five_segment_form_is_an_identity() {
        let text = "spiffe://td/ns/n/sa/a";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.principal(), "td/ns/n/sa/a");
        for bad in [
            "",
            "td/ns/n/sa/a",
            "spiffe://td/ns/n/sa",
            "spiffe://td/ns/n/sa/a/b",
            "spiffe:///ns/n/sa/a",
            "spiffe://td/sa/n/ns/a",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
