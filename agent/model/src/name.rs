//! Names, each with its own type so that two kinds cannot be confused. All are one pointer wide and cheap to clone, and
//! equal ones can share their text ([`crate::Interner`]).

use std::fmt;

use arcstr::ArcStr;

/// A name whose text can be shared.
pub trait Name: Shared {}

/// Access to the shared text, for this crate only.
#[doc(hidden)]
pub trait Shared {
    fn from_shared(text: ArcStr) -> Self;
    fn shared(&self) -> &ArcStr;
}

/// Declares a newtype over shared text.
macro_rules! names {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
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
            fn from_shared(text: ArcStr) -> Self {
                Self(text)
            }

            fn shared(&self) -> &ArcStr {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
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

names! {
    /// A Kubernetes namespace.
    Namespace;
    /// A Kubernetes service account, without its namespace.
    ServiceAccount;
    /// A service's or workload's fully qualified name.
    Hostname;
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
