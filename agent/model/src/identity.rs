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

    /// Whether the text is a trust domain's name (SPIFFE-ID 2.1): of lower-case letters, digits, `.`, `-` and `_`, and at
    /// most 255 bytes long. Peers of any other cannot be verified.
    #[must_use]
    pub fn is_valid(text: &str) -> bool {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        (1..=MAX_TRUST_DOMAIN).contains(&text.len()) && text.bytes().all(allowed)
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

/// Longest SPIFFE ID and longest trust domain in bytes (SPIFFE-ID 2.1 and 2.3).
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;

/// Whether the text is one segment of a path (SPIFFE-ID 2.2): nothing that could be a query, a fragment, an escape, or a
/// step to another path.
fn is_segment(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !matches!(text, "" | "." | "..") && text.bytes().all(allowed)
}

impl FromStr for SpiffeId {
    type Err = NotAnIdentity;

    /// Reads an identity strictly: other spellings of a URI that would mean the same are not accepted, so that equal
    /// identities are equal text, in certificates and in policies.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || NotAnIdentity(text.to_owned());
        let rest = text.strip_prefix("spiffe://").filter(|_| text.len() <= MAX_ID).ok_or_else(bad)?;
        let mut parts = rest.split('/');
        let read: [Option<&str>; 6] = std::array::from_fn(|_| parts.next());
        match read {
            [Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None]
                if TrustDomain::is_valid(domain) && is_segment(namespace) && is_segment(account) =>
            {
                Ok(Self::new(domain.into(), namespace.into(), account.into()))
            }
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_the_specification_is_read() {
        for text in ["spiffe://a-b_c.d1/ns/N-n_n.1/sa/A.b-c_D", "spiffe://td/ns/.../sa/..a"] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((id.to_string(), format!("{id:?}")), (text.to_owned(), text.to_owned()));
        }
    }

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
            "spiffe://td/ns/n/sa/a?",
            "spiffe://td/ns/n/sa/a?x=1",
            "spiffe://td/ns/n/sa/a#x",
            "spiffe://td/ns/n/sa/a b",
            "spiffe://td/ns/n/sa/%61",
            "spiffe://td/ns/n/sa/..",
            "spiffe://td/ns/./sa/a",
            "spiffe://td/ns/n/sa/a/",
            "spiffe://td/ns//sa/a",
            "spiffe://td:443/ns/n/sa/a",
            "spiffe://me@td/ns/n/sa/a",
            "spiffe://TD/ns/n/sa/a",
            "SPIFFE://td/ns/n/sa/a",
            "spiffe://td/ns/n/sa/\u{e4}",
            "spiffe://td/ns/n/sa/a\0",
            &format!("spiffe://{}/ns/n/sa/a", "t".repeat(256)),
            &format!("spiffe://td/ns/n/sa/{}", "a".repeat(2048)),
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
