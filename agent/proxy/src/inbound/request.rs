//! Validation of a CONNECT before authorization, in ztunnel's order since clients see the first status that applies:
//! method and authority, local workload, destination, port. Also collects what its access-log record names. Returns the
//! status to answer; writes nothing to the peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use isthmus_hbone::forwarded::Forwarded;
use isthmus_hbone::{BadHead, ConnectStatus, Head};
use isthmus_identity::PeerIdentity;
use isthmus_model::workload::TunnelKind;
use isthmus_model::{NetworkAddress, NetworkId, Workload};
use isthmus_state::{InboundError, Snapshot, inbound_target, service_label};

use crate::context::PodContext;
use crate::error::Error;
use crate::telemetry::baggage;
use crate::telemetry::{EndpointInfo, Opening, ServiceLabels};
use crate::types::{Direction, Reporter};

/// The tunnel on which a CONNECT arrived.
#[derive(Debug, Clone)]
pub(crate) struct InboundTunnel {
    /// The authenticated client.
    pub(crate) peer: PeerIdentity,
    /// The client's address.
    pub(crate) source: SocketAddr,
    /// The address on which the tunnel was accepted.
    pub(crate) local: SocketAddr,
}

/// A CONNECT that passed validation.
#[derive(Debug)]
pub(super) struct ValidConnect {
    /// The local workload.
    pub(super) workload: Arc<Workload>,
    /// The application's address and port: the destination that policy is evaluated for.
    pub(super) destination: SocketAddr,
    /// The service's hostname, from the `forwarded` header.
    pub(super) host: Option<String>,
    /// The destination to name in a PROXY header, if the application expects one.
    pub(super) proxy_header: Option<SocketAddr>,
    /// What a client of another network says of itself. For telemetry, once policy has let the client in.
    pub(super) claimed: Option<EndpointInfo>,
}

/// A CONNECT that failed validation.
#[derive(Debug)]
pub(super) struct Rejected {
    pub(super) status: ConnectStatus,
    pub(super) error: Error,
}

impl ValidConnect {
    /// The application's socket for a destination that policy permitted: an application that expects a PROXY header
    /// listens on loopback.
    pub(super) fn app_addr(&self, permitted: SocketAddr) -> SocketAddr {
        let ip = match (self.proxy_header, permitted.ip()) {
            (None, ip) => ip,
            (Some(_), IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (Some(_), IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        };
        SocketAddr::new(ip, permitted.port())
    }
}

/// Validates a CONNECT; waits for the control plane to describe the local workload, up to the configured deadline.
pub(super) async fn validate(
    ctx: &PodContext,
    tunnel: &InboundTunnel,
    head: Result<Head, BadHead>,
) -> Result<(ValidConnect, Opening), Rejected> {
    let head = head.map_err(|bad| Rejected { status: bad.status(), error: bad.into() })?;
    let unavailable = |error| Rejected { status: ConnectStatus::SERVICE_UNAVAILABLE, error };
    let workload = ctx.workload().await.map_err(unavailable)?;
    let (snapshot, proxy) = (ctx.snapshot(), ctx.proxy());
    let found = inbound_target(&snapshot, &workload, tunnel.local, &head.authority, &proxy.network);
    let target = found.map_err(|bad| Rejected { status: status(&bad), error: bad.into() })?;
    if !ctx.may_reach(target.addr.port()) {
        return Err(unavailable(Error::Recursive(target.addr)));
    }
    let (source, claimed) = source(&snapshot, tunnel, &head, &proxy.network, proxy.config.baggage);
    let host = head.forwarded.as_deref().and_then(|header| Forwarded::parse(header).host);
    let service = service_label(&snapshot, &workload, host.as_deref(), target.addr.port());
    let proxy_header =
        target.tunnel.filter(|app| app.protocol == TunnelKind::Proxy).map(|app| app.destination);
    let opening = Opening {
        reporter: Reporter::Destination,
        direction: Direction::Inbound,
        src: tunnel.source,
        source,
        dst: tunnel.local,
        hbone: Some(head.authority),
        service: service.map(|service| ServiceLabels::of(service)),
        destination: EndpointInfo::new(Some(&workload), Some(workload.identity())),
        mutual_tls: true,
    };
    Ok((ValidConnect { workload, destination: target.addr, host, proxy_header, claimed }, opening))
}

/// The status of a CONNECT without a target in this pod. A peer may try another endpoint after 503, not after 400.
fn status(error: &InboundError) -> ConnectStatus {
    if error.is_peers_fault() { ConnectStatus::BAD_REQUEST } else { ConnectStatus::SERVICE_UNAVAILABLE }
}

/// The client as telemetry names it: the workload at its address, if it has the identity that the client proved, and
/// otherwise that identity alone; and for a client of another network, what its baggage claims.
fn source(
    snapshot: &Snapshot,
    tunnel: &InboundTunnel,
    head: &Head,
    own: &NetworkId,
    baggage: bool,
) -> (EndpointInfo, Option<EndpointInfo>) {
    let identity = tunnel.peer.id();
    let foreign =
        head.forwarded_network.as_deref().is_some_and(|from| !from.eq_ignore_ascii_case(own.as_str()));
    if foreign {
        let claimed = head.baggage.as_deref().filter(|_| baggage);
        let claimed = claimed.map(|claimed| baggage::from_baggage(claimed, Some(identity)));
        return (EndpointInfo::proven(identity), claimed);
    }
    let address = NetworkAddress { network: own.clone(), address: tunnel.source.ip() };
    let domains = snapshot.trust_domains();
    let is_client =
        |there: &&Arc<Workload>| domains.same_identity(&identity.trust_domain, identity, &there.identity());
    let workload = snapshot.workload_by_addr(&address).filter(is_client);
    let found = workload.map(|workload| EndpointInfo::new(Some(workload), Some(identity.clone())));
    (found.unwrap_or_else(|| EndpointInfo::proven(identity)), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_is_dialled_at_the_permitted_destination_or_its_port_on_loopback() {
        let permitted: SocketAddr = "10.0.0.2:15008".parse().unwrap();
        let connect = |proxy_header| ValidConnect {
            workload: Arc::default(),
            // Must not be used: the permit decides.
            destination: "10.0.0.9:80".parse().unwrap(),
            host: None,
            proxy_header,
            claimed: None,
        };
        assert_eq!(connect(None).app_addr(permitted), permitted);
        let with_header = connect(Some("10.0.0.7:80".parse().unwrap()));
        assert_eq!(with_header.app_addr(permitted), "127.0.0.1:15008".parse().unwrap());
        let v6 = "[2001:db8::1]:15008".parse().unwrap();
        assert_eq!(with_header.app_addr(v6), "[::1]:15008".parse().unwrap());
    }
}
