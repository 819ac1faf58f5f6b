//! The Kubernetes kinds that the playground knows, as one table: the API server's paths, the manifests' `kind` lines and
//! the clients' requests all come from it. It knows names and scopes, not what an object means.

/// One kind of object and where the API serves it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Order in which objects of different kinds are applied: what others need comes first.
    rank: u8,
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// `kind` of an object.
    pub kind: &'static str,
    /// Path segment.
    pub plural: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
}

const fn kind(
    rank: u8,
    (group, version): (&'static str, &'static str),
    (kind, plural): (&'static str, &'static str),
    namespaced: bool,
) -> Kind {
    Kind { rank, group, version, kind, plural, namespaced }
}

const CORE: (&str, &str) = ("", "v1");
const APPS: (&str, &str) = ("apps", "v1");
const GATEWAY_API: (&str, &str) = ("gateway.networking.k8s.io", "v1");
const GATEWAY_API_BETA: (&str, &str) = ("gateway.networking.k8s.io", "v1beta1");
const GATEWAY_API_ALPHA: (&str, &str) = ("gateway.networking.k8s.io", "v1alpha2");
const DISCOVERY: (&str, &str) = ("discovery.k8s.io", "v1");
const SECURITY: (&str, &str) = ("security.istio.io", "v1");
const NETWORKING: (&str, &str) = ("networking.istio.io", "v1");
/// Versions under which API servers take the same objects, and the one that is stored here.
const OTHER_VERSIONS: [(&str, &str); 7] = [
    ("security.istio.io/v1beta1", "security.istio.io/v1"),
    ("networking.istio.io/v1beta1", "networking.istio.io/v1"),
    ("networking.istio.io/v1alpha3", "networking.istio.io/v1"),
    ("gateway.networking.k8s.io/v1beta1", "gateway.networking.k8s.io/v1"),
    ("gateway.networking.k8s.io/v1alpha2", "gateway.networking.k8s.io/v1"),
    ("gateway.networking.k8s.io/v1alpha3", "gateway.networking.k8s.io/v1"),
    ("gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"),
];

/// The table of kinds lacks this one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("kind {0} is not known")]
pub struct UnknownKind(String);

/// Every known kind.
pub static KINDS: [Kind; 20] = [
    kind(0, CORE, ("Namespace", "namespaces"), false),
    kind(1, CORE, ("Node", "nodes"), false),
    kind(2, CORE, ("ServiceAccount", "serviceaccounts"), true),
    kind(3, CORE, ("ConfigMap", "configmaps"), true),
    kind(3, CORE, ("Secret", "secrets"), true),
    kind(4, CORE, ("Service", "services"), true),
    kind(5, CORE, ("Endpoints", "endpoints"), true),
    kind(5, DISCOVERY, ("EndpointSlice", "endpointslices"), true),
    kind(6, SECURITY, ("AuthorizationPolicy", "authorizationpolicies"), true),
    kind(6, SECURITY, ("PeerAuthentication", "peerauthentications"), true),
    kind(6, NETWORKING, ("ServiceEntry", "serviceentries"), true),
    kind(6, NETWORKING, ("WorkloadEntry", "workloadentries"), true),
    kind(6, GATEWAY_API, ("GatewayClass", "gatewayclasses"), false),
    kind(7, GATEWAY_API, ("Gateway", "gateways"), true),
    kind(7, GATEWAY_API, ("TLSRoute", "tlsroutes"), true),
    kind(7, GATEWAY_API_BETA, ("ReferenceGrant", "referencegrants"), true),
    kind(7, GATEWAY_API_ALPHA, ("TCPRoute", "tcproutes"), true),
    kind(8, APPS, ("DaemonSet", "daemonsets"), true),
    kind(8, APPS, ("Deployment", "deployments"), true),
    kind(9, CORE, ("Pod", "pods"), true),
];

// === impl Kind ===

impl Kind {
    /// The kind that an object claims with its `apiVersion` and `kind`.
    pub fn of(api_version: &str, kind: &str) -> Option<&'static Self> {
        KINDS.iter().find(|known| known.kind == kind && known.api_version() == api_version)
    }

    /// The kind that an object claims under a version that is not the stored one but means the same.
    pub fn of_other_version(api_version: &str, kind: &str) -> Option<&'static Self> {
        let stored = OTHER_VERSIONS.iter().filter(|(other, _)| *other == api_version);
        stored.into_iter().find_map(|(_, stored)| Self::of(stored, kind))
    }

    /// The kind that is served under a path.
    pub fn at(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        KINDS.iter().find(|known| (known.group, known.version, known.plural) == (group, version, plural))
    }

    /// A kind of the table by its name alone.
    pub fn named(kind: &str) -> Option<&'static Self> {
        KINDS.iter().find(|known| known.kind == kind)
    }

    /// As [`Self::named`], for a kind that the caller relies on.
    ///
    /// # Errors
    /// When the table lacks it.
    pub fn known(kind: &str) -> Result<&'static Self, UnknownKind> {
        Self::named(kind).ok_or_else(|| UnknownKind(kind.to_owned()))
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Path of the collection: of one namespace, or of all (which is also the path for cluster-scoped kinds).
    pub fn collection(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let (version, plural) = (self.api_version(), self.plural);
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
            None => format!("{root}/{version}/{plural}"),
        }
    }

    /// Path of one object.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.collection(Some(namespace)))
    }

    /// Order of application among kinds.
    pub fn rank(&self) -> u8 {
        self.rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_apis() {
        let path = |kind: &str| Kind::named(kind).unwrap().path("sample", "x");
        assert_eq!(path("Pod"), "/api/v1/namespaces/sample/pods/x");
        assert_eq!(path("Node"), "/api/v1/nodes/x");
        assert_eq!(path("Gateway"), "/apis/gateway.networking.k8s.io/v1/namespaces/sample/gateways/x");
        assert_eq!(Kind::named("Pod").unwrap().collection(None), "/api/v1/pods");
    }

    #[test]
    fn a_kind_belongs_to_its_version() {
        assert!(Kind::of("apps/v1", "Deployment").is_some());
        assert!(Kind::of("apps/v1beta1", "Deployment").is_none());
        assert!(Kind::at("", "v1", "deployments").is_none());
        let entry = Kind::named("ServiceEntry");
        assert_eq!(Kind::of_other_version("networking.istio.io/v1beta1", "ServiceEntry"), entry);
        assert_eq!(Kind::of_other_version("networking.istio.io/v1", "ServiceEntry"), None);
    }
}
