//! Names, each with its own type so that two kinds cannot be confused. All are one pointer wide and cheap to clone, and
//! equal ones can share their text ([`crate::Interner`]).

use std::borrow::Cow;
use std::fmt;

use arcstr::ArcStr;

/// A name whose text can be shared.
pub trait Name: Shared {}

/// Access to the shared text, for this crate only.
#[doc(hidden)]
pub trait Shared {
    /// The form in which a name of this kind is kept: equal names have equal text.
    fn canonical(text: &str) -> Cow<'_, str>;
    /// From text in that form.
    fn from_shared(text: ArcStr) -> Self;
    fn shared(&self) -> &ArcStr;
}

/// Declares newtypes over shared text, each kept in the form that `$canonical` gives it.
macro_rules! names {
    ($canonical:path: $($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(ArcStr);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether the text is empty; an absent name on the wire is the empty one.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.0.is_empty()
            }
        }

        // Hash and Eq are those of the text, so that maps can be searched by `&str`.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&$name> for Text {
            /// The same text, not a copy of it.
            fn from(name: &$name) -> Self {
                Self(name.0.clone())
            }
        }

        impl Name for $name {}

        impl Shared for $name {
            fn canonical(text: &str) -> Cow<'_, str> {
                $canonical(text)
            }

            fn from_shared(text: ArcStr) -> Self {
                Self(text)
            }

            fn shared(&self) -> &ArcStr {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self($canonical(text).as_ref().into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                text.as_str().into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )*};
}

names! { Cow::Borrowed:
    /// A Kubernetes namespace.
    Namespace;
    /// A Kubernetes service account, without its namespace.
    ServiceAccount;
    /// A network: workloads of one network reach each other directly. Empty is a network too.
    NetworkId;
    /// A cluster, as the control plane names it.
    ClusterId;
    /// A Kubernetes node.
    NodeName;
    /// Primary key of a workload, such as `<cluster>//Pod/<namespace>/<name>`.
    WorkloadUid;
    /// Key of a policy: the xDS name, `<namespace>/<name>`.
    PolicyKey;
    /// A pod's UID, as Kubernetes gave it.
    PodUid;
    /// Any other text of the mesh: pod names, canonical names, revisions.
    Text;
}

names! { canonical_hostname:
    /// A service's or workload's fully qualified name: in lower case and without the final dot, as DNS compares names
    /// (RFC 4343), so that what one side wrote as `API.example.com.` is found by what another asks for.
    Hostname;
}

fn canonical_hostname(text: &str) -> Cow<'_, str> {
    let relative = text.strip_suffix('.').unwrap_or(text);
    if relative.bytes().any(|byte| byte.is_ascii_uppercase()) {
        relative.to_ascii_lowercase().into()
    } else {
        relative.into()
    }
}

/// A hostname within a namespace: the key of a service, `<namespace>/<hostname>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NamespacedHostname {
    /// The namespace.
    pub namespace: Namespace,
    /// The hostname.
    pub hostname: Hostname,
}

impl NamespacedHostname {
    /// Reads `<namespace>/<hostname>`; `None` when there is no slash, or more than one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, hostname) = Self::split(text)?;
        Some(Self { namespace: namespace.into(), hostname: hostname.into() })
    }

    /// Namespace and hostname of what [`Self::parse`] reads.
    pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
        let (namespace, hostname) = text.split_once('/')?;
        let fits = !namespace.is_empty() && !hostname.is_empty() && !hostname.contains('/');
        fits.then_some((namespace, hostname))
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Interner;

    #[test]
    fn hostnames_are_equal_as_dns_compares_them_and_other_names_as_they_are_written() {
        let mut texts = Interner::default();
        for text in ["API.Partner2.example", "api.partner2.EXAMPLE.", "api.partner2.example"] {
            let interned: Hostname = texts.name(text);
            for name in [text.into(), text.to_owned().into(), interned] {
                assert_eq!(name, Hostname::from("api.partner2.example"), "{text}");
            }
            let key = NamespacedHostname::parse(&format!("ns/{text}")).unwrap();
            assert_eq!(key.to_string(), "ns/api.partner2.example");
        }
        assert_ne!(Text::from("A"), Text::from("a"));
    }
}
