//! What a CONNECT asks for, checked in the reference's order up to the policy: method and authority, the pod, the
//! target, the port. Also whose names its record will carry. Answers statuses; sends nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use isthmus_hbone::forwarded::Forwarded;
use isthmus_hbone::{BadHead, ConnectStatus, Head};
use isthmus_identity::PeerIdentity;
use isthmus_model::workload::TunnelKind;
use isthmus_model::{NetworkAddress, NetworkId, Workload};
use isthmus_state::{Snapshot, inbound_target, service_label};

use crate::context::PodContext;
use crate::error::Error;
use crate::telemetry::baggage;
use crate::telemetry::{End, Opening, ServiceLabels};
use crate::types::{Direction, Reporter};

/// Where a tunnel comes from and where it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// Who the client proved to be.
    pub(crate) peer: PeerIdentity,
    pub(crate) source: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// A CONNECT that may be put before the policy.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The pod.
    pub(super) workload: Arc<Workload>,
    /// Where the application listens; what the policy sees.
    pub(super) target: SocketAddr,
    /// The service as the client named it.
    pub(super) host: Option<String>,
    /// What to announce to an application that expects a tunnel on its port.
    pub(super) announce: Option<SocketAddr>,
}

/// A CONNECT that is refused before any policy.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: ConnectStatus,
    pub(super) error: Error,
}

impl Admitted {
    /// Where to connect to. An application that expects a tunnel listens on loopback.
    pub(super) fn dial(&self) -> SocketAddr {
        let ip = match (self.announce, self.target.ip()) {
            (None, ip) => ip,
            (Some(_), IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
            (Some(_), IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        };
        SocketAddr::new(ip, self.target.port())
    }
}

/// Checks a CONNECT, waiting a little for the control plane to tell of the pod.
pub(super) async fn admit(
    ctx: &PodContext,
    arrival: &Arrival,
    head: Result<Head, BadHead>,
) -> Result<(Admitted, Opening), Refused> {
    let head =
        head.map_err(|bad| Refused { status: bad.status(), error: Error::BadRequest(bad.to_string()) })?;
    let workload = ctx
        .workload()
        .await
        .map_err(|error| Refused { status: ConnectStatus::SERVICE_UNAVAILABLE, error })?;
    let (snapshot, proxy) = (ctx.snapshot(), ctx.proxy());
    let found = inbound_target(&snapshot, &workload, arrival.local, &head.authority, &proxy.network);
    let target = found.map_err(|bad| Refused { status: bad.status().into(), error: Error::Inbound(bad) })?;
    if !ctx.may_reach(target.addr.port()) {
        return Err(Refused {
            status: ConnectStatus::SERVICE_UNAVAILABLE,
            error: Error::Recursive(target.addr),
        });
    }
    let source = source(&snapshot, arrival, &head, &proxy.network, proxy.config.baggage);
    let host = head.forwarded.as_deref().and_then(|header| Forwarded::parse(header).host);
    let service = service_label(&snapshot, &workload, host.as_deref(), target.addr.port());
    let announce = target.tunnel.filter(|tunnel| tunnel.protocol == TunnelKind::Proxy);
    let announce = announce.map(|tunnel| tunnel.destination);
    let opening = Opening {
        reporter: Reporter::Destination,
        direction: Direction::Inbound,
        src: arrival.source,
        source,
        dst: arrival.local,
        hbone: Some(head.authority),
        service: service.map(|service| ServiceLabels::of(service)),
        destination: End::of(Some(&workload), Some(workload.identity())),
        mutual_tls: true,
    };
    Ok((Admitted { workload, target: target.addr, host, announce }, opening))
}

/// The client's names: by its address, or, when it comes from another network, as it calls itself. Its identity is
/// the proven one either way.
fn source(snapshot: &Snapshot, arrival: &Arrival, head: &Head, own: &NetworkId, baggage: bool) -> End {
    let identity = Some(arrival.peer.id().clone());
    let foreign =
        head.forwarded_network.as_deref().is_some_and(|from| !from.eq_ignore_ascii_case(own.as_str()));
    if !foreign {
        let address = NetworkAddress { network: own.clone(), address: arrival.source.ip() };
        return End::of(snapshot.workload_by_addr(&address).map(|workload| &**workload), identity);
    }
    let said = head.baggage.as_deref().filter(|_| baggage);
    let mut end = said.map(baggage::from_baggage).unwrap_or_default();
    end.party.principal = identity;
    end
}
