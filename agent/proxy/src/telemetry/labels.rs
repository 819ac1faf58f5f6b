//! The metric labels of one connection, in ztunnel's order and with its fallbacks for unknown values. Only formats.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use isthmus_model::{ClusterId, Hostname, Namespace, Service, SpiffeId, Text, Workload};
use isthmus_rt::metrics::expiring::Coarse;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};

use crate::types::{Reporter, ResponseFlag};

/// Labels of a connection's source or destination. Empty values are exported as `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Party {
    /// Name of the controller.
    pub workload: Text,
    /// Canonical name.
    pub canonical_service: Text,
    /// Canonical revision; also the version.
    pub canonical_revision: Text,
    /// Namespace.
    pub namespace: Namespace,
    /// The authenticated identity; outbound the expected one until the handshake.
    pub principal: Option<SpiffeId>,
    /// Value of the label `app`.
    pub app: Text,
    /// Cluster.
    pub cluster: ClusterId,
    /// Region.
    pub region: Text,
    /// Zone.
    pub zone: Text,
    /// Whether a workload is known, from the control plane or from baggage.
    pub known: bool,
}

/// Labels of the service that the client addressed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ServiceLabels {
    /// Fully qualified name.
    pub hostname: Hostname,
    /// Namespace.
    pub namespace: Namespace,
    /// Short name.
    pub name: Text,
}

/// The labels of one connection. Clones share their texts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels {
    /// The reporting proxy.
    pub reporter: Reporter,
    /// The client.
    pub source: Party,
    /// The service.
    pub service: ServiceLabels,
    /// The server.
    pub destination: Party,
    /// The outcome.
    pub flag: ResponseFlag,
    /// Whether the connection is carried over mutual TLS.
    pub mutual_tls: bool,
}

/// The labels under which expired series are summed: those whose number of values does not depend on peers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KeptLabels {
    reporter: &'static str,
    response_flags: &'static str,
    connection_security_policy: &'static str,
}

// === impl Party ===

impl Party {
    /// Labels of a workload of the control plane; without a principal.
    #[must_use]
    pub fn of(workload: &Workload) -> Self {
        Self {
            workload: workload.workload_name.clone(),
            canonical_service: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            namespace: workload.namespace.clone(),
            principal: None,
            app: workload.canonical_name.clone(),
            cluster: workload.cluster_id.clone(),
            region: workload.locality.region.clone(),
            zone: workload.locality.zone.clone(),
            known: true,
        }
    }

    /// Sets the identity.
    #[must_use]
    pub fn with_principal(mut self, principal: Option<SpiffeId>) -> Self {
        self.principal = principal;
        self
    }
}

// === impl ServiceLabels ===

impl ServiceLabels {
    /// Labels of a service of the control plane.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        Self {
            hostname: service.hostname.clone(),
            namespace: service.namespace.clone(),
            name: service.name.clone(),
        }
    }
}

// === impl Labels ===

impl Coarse for Labels {
    type Kept = KeptLabels;

    fn coarse(&self) -> KeptLabels {
        KeptLabels {
            reporter: self.reporter.as_str(),
            response_flags: self.flag.as_str(),
            connection_security_policy: known(self.security_policy()),
        }
    }

    /// The client, by what is proven of it: a peer chooses the labels that its baggage claims, a pod its destinations.
    fn source(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        match &self.source.principal {
            Some(identity) => identity.hash(&mut hasher),
            None => (&self.source.workload, &self.source.namespace).hash(&mut hasher),
        }
        Some(hasher.finish())
    }
}

impl Labels {
    fn security_policy(&self) -> &'static str {
        if self.mutual_tls { "mutual_tls" } else { "" }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut put = |key: &str, value: &str| (key, known(value)).encode_pair(encoder);
        let (source, destination, service) = (&self.source, &self.destination, &self.service);
        put("reporter", self.reporter.as_str())?;
        put("source_workload", source.workload.as_str())?;
        put("source_canonical_service", source.canonical_service.as_str())?;
        put("source_canonical_revision", source.canonical_revision.as_str())?;
        put("source_workload_namespace", source.namespace.as_str())?;
        put("source_principal", &principal(source))?;
        put("source_app", source.app.as_str())?;
        put("source_version", source.canonical_revision.as_str())?;
        put("source_cluster", source.cluster.as_str())?;
        put("destination_service", service.hostname.as_str())?;
        put("destination_service_namespace", service.namespace.as_str())?;
        put("destination_service_name", service.name.as_str())?;
        put("destination_workload", destination.workload.as_str())?;
        put("destination_canonical_service", destination.canonical_service.as_str())?;
        put("destination_canonical_revision", destination.canonical_revision.as_str())?;
        put("destination_workload_namespace", destination.namespace.as_str())?;
        put("destination_principal", &principal(destination))?;
        put("destination_app", destination.app.as_str())?;
        put("destination_version", destination.canonical_revision.as_str())?;
        put("destination_cluster", destination.cluster.as_str())?;
        put("request_protocol", "tcp")?;
        put("response_flags", self.flag.as_str())?;
        put("connection_security_policy", self.security_policy())?;
        if source.known || destination.known {
            put("source_region", source.region.as_str())?;
            put("source_zone", source.zone.as_str())?;
            put("destination_region", destination.region.as_str())?;
            put("destination_zone", destination.zone.as_str())?;
        }
        Ok(())
    }
}

fn known(value: &str) -> &str {
    if value.is_empty() { "unknown" } else { value }
}

fn principal(party: &Party) -> String {
    party.principal.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// Encodes one label.
trait EncodePair {
    fn encode_pair(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result;
}

impl EncodePair for (&str, &str) {
    fn encode_pair(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        prometheus_client::encoding::EncodeLabel::encode(self, encoder.encode_label())
    }
}

#[cfg(test)]
mod tests;
