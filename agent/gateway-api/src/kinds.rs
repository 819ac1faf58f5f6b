//! The kinds that are watched, and where the API serves them. Knows nothing of what they mean.

use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ApiResource;

/// The group of the Gateway API.
pub(crate) const GROUP: &str = "gateway.networking.k8s.io";

/// A watched kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Says which controller a Gateway belongs to.
    GatewayClass,
    /// Only the process' own.
    Gateway,
    TlsRoute,
    TcpRoute,
    /// Allows routes to refer to services of other namespaces.
    ReferenceGrant,
    /// For the labels that listeners select routes' namespaces by.
    Namespace,
    /// The backends, and the gateway's own Service with its addresses.
    Service,
    /// The gateway's own pods.
    Pod,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 8] = [
        Self::GatewayClass,
        Self::Gateway,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::ReferenceGrant,
        Self::Namespace,
        Self::Service,
        Self::Pod,
    ];

    /// `kind` of its objects.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::Pod => "Pod",
        }
    }

    /// The resource of a kind that every API server has; `None` for those of the Gateway API, whose versions are asked
    /// for.
    pub(crate) fn built_in(self) -> Option<ApiResource> {
        match self {
            Self::Namespace => Some(ApiResource::erase::<Namespace>(&())),
            Self::Service => Some(ApiResource::erase::<Service>(&())),
            Self::Pod => Some(ApiResource::erase::<Pod>(&())),
            Self::GatewayClass | Self::Gateway | Self::TlsRoute | Self::TcpRoute | Self::ReferenceGrant => {
                None
            }
        }
    }
}
