//! What is known of a unit's connections, between values and its first item. The peer's identity is not in it: the receiver
//! proves it from the certificates.

mod record;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use isthmus_hbone::handover::{Item, VERSION};
use isthmus_identity::PeerEvidence;
use isthmus_model::NamespacedHostname;
use isthmus_proto::handover as proto;
use isthmus_rt::threads::Thread;
use isthmus_state::{EndpointGroup, EndpointId};
use prost::Message as _;

use crate::retry::{EjectionParts, RetryParts};
use crate::telemetry::RecordParts;
use crate::tracker::Connection;
use crate::types::{Carrier, PoolKey};

/// Certificates of a peer.
const MAX_CHAIN: usize = 16;

/// Why the first item of a unit is refused.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// It is no message.
    #[error("malformed description of a unit: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field is missing or out of its range, or the version is another one.
    #[error("description of a unit: invalid {0}")]
    Field(&'static str),
}

/// What is known of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MovedConnection {
    pub(super) record: RecordParts,
    /// Its entry in the table; `None` for one that a change of policy was closing.
    pub(super) conn: Option<Connection>,
}

/// What a unit is, to be described.
#[derive(Debug)]
pub(super) enum Kind<'a> {
    /// A tunnel that was dialled, and what its peer had presented.
    Client(&'a PoolKey, Option<&'a PeerEvidence>),
    /// A tunnel that a peer opened.
    Server { source: SocketAddr, local: SocketAddr, evidence: Option<&'a PeerEvidence> },
    /// A connection without a tunnel.
    Pair { inbound: bool },
    /// What the pod has learnt of its upstreams.
    Retries(&'a RetryParts),
}

/// A unit as another process describes it.
#[derive(Debug)]
pub(super) struct MovedUnit {
    pub(super) thread: usize,
    pub(super) kind: WireKind,
    pub(super) connections: HashMap<u32, MovedConnection>,
}

/// Which end of which tunnel, with what its peer had presented.
#[derive(Debug)]
pub(super) enum WireKind {
    Client(PoolKey, PeerEvidence),
    Server { source: SocketAddr, local: SocketAddr, evidence: PeerEvidence },
    Pair { inbound: bool },
    Retries(RetryParts),
}

// === encoding ===

pub(super) fn encode(thread: Thread, kind: &Kind<'_>, connections: &[(u32, MovedConnection)]) -> Item {
    let peer = |evidence: &PeerEvidence| proto::Evidence {
        certificates: evidence.chain().map(<[u8]>::to_vec).collect(),
        verified_at: evidence.verified_at().as_secs(),
    };
    let kind = match *kind {
        Kind::Client(PoolKey { source, destinations, address, source_ip }, evidence) => {
            proto::moved::Kind::Client(proto::ClientTunnel {
                source: source.to_string(),
                destinations: destinations.iter().map(ToString::to_string).collect(),
                address: address.to_string(),
                source_ip: source_ip.to_string(),
                peer: evidence.map(peer),
            })
        }
        Kind::Server { source, local, evidence } => {
            let (source, local) = (source.to_string(), local.to_string());
            proto::moved::Kind::Server(proto::ServerTunnel { source, local, peer: evidence.map(peer) })
        }
        Kind::Pair { inbound } => proto::moved::Kind::Pair(proto::Pair { inbound }),
        Kind::Retries(parts) => proto::moved::Kind::Retries(encode_retries(parts)),
    };
    let message = proto::Moved {
        version: VERSION,
        thread: u32::try_from(thread.index()).unwrap_or_default(),
        kind: Some(kind),
        connections: connections.iter().map(|(stream, one)| connection(*stream, one)).collect(),
    };
    Item { bytes: message.encode_to_vec().into(), socket: None }
}

fn connection(stream: u32, MovedConnection { record, conn }: &MovedConnection) -> proto::Connection {
    let tracked = conn.as_ref().map(|conn| proto::Tracked {
        src: conn.src.to_string(),
        original_dst: conn.original_dst.clone(),
        actual_dst: conn.actual_dst.to_string(),
        carrier: number(&Carrier::ALL, &conn.protocol),
    });
    proto::Connection { stream, record: Some(record::encode(record)), tracked }
}

fn encode_retries(RetryParts { tokens, ejections }: &RetryParts) -> proto::Retries {
    let ejection = |EjectionParts { group, endpoint, left, strikes }: &EjectionParts| proto::Ejection {
        namespace: group.service.namespace.as_str().to_owned(),
        hostname: group.service.hostname.as_str().to_owned(),
        port: group.port.into(),
        workload: endpoint.workload.as_str().to_owned(),
        address: endpoint.address.map(|address| address.to_string()),
        left: u64::try_from(left.as_micros()).unwrap_or(u64::MAX),
        strikes: *strikes,
    };
    proto::Retries { tokens: *tokens, ejections: ejections.iter().map(ejection).collect() }
}

/// The place of a value in a list that both processes have.
fn number<T: PartialEq>(all: &[T], value: &T) -> u32 {
    let at = all.iter().position(|one| one == value);
    at.and_then(|at| u32::try_from(at).ok()).unwrap_or(u32::MAX)
}

// === decoding ===

pub(super) fn decode(item: &Item) -> Result<MovedUnit, WireError> {
    let bytes = item.bytes.as_slice();
    if proto::Versioned::decode(bytes)?.version != VERSION {
        return Err(WireError::Field("version"));
    }
    let proto::Moved { version: _, thread, kind, connections } = proto::Moved::decode(bytes)?;
    let expected = connections.len();
    let connections: HashMap<u32, MovedConnection> =
        connections.into_iter().map(connection_from).collect::<Result<_, _>>()?;
    if connections.len() != expected {
        return Err(WireError::Field("streams"));
    }
    let kind = match kind.ok_or(WireError::Field("kind"))? {
        proto::moved::Kind::Client(proto::ClientTunnel {
            source,
            destinations,
            address,
            source_ip,
            peer,
        }) => {
            let destinations =
                destinations.iter().map(|id| parsed(id, "destination")).collect::<Result<_, _>>()?;
            let key = PoolKey {
                source: parsed(&source, "source")?,
                destinations,
                address: parsed(&address, "address")?,
                source_ip: parsed(&source_ip, "source address")?,
            };
            WireKind::Client(key, evidence(peer, false)?)
        }
        proto::moved::Kind::Server(proto::ServerTunnel { source, local, peer }) => WireKind::Server {
            source: parsed(&source, "source")?,
            local: parsed(&local, "address")?,
            evidence: evidence(peer, true)?,
        },
        proto::moved::Kind::Pair(proto::Pair { inbound }) => WireKind::Pair { inbound },
        proto::moved::Kind::Retries(retries) => WireKind::Retries(retries_from(retries)?),
    };
    let thread = usize::try_from(thread).map_err(|_| WireError::Field("thread"))?;
    Ok(MovedUnit { thread, kind, connections })
}

fn retries_from(proto::Retries { tokens, ejections }: proto::Retries) -> Result<RetryParts, WireError> {
    let ejection = |message: proto::Ejection| {
        let service = NamespacedHostname {
            namespace: message.namespace.as_str().into(),
            hostname: message.hostname.as_str().into(),
        };
        let port = u16::try_from(message.port).map_err(|_| WireError::Field("port"))?;
        let address = message.address.map(|address| parsed(&address, "address")).transpose()?;
        Ok(EjectionParts {
            group: EndpointGroup { service, port },
            endpoint: EndpointId { workload: message.workload.as_str().into(), address },
            left: Duration::from_micros(message.left),
            strikes: message.strikes,
        })
    };
    let ejections = ejections.into_iter().map(ejection).collect::<Result<_, WireError>>()?;
    Ok(RetryParts { tokens, ejections })
}

fn evidence(peer: Option<proto::Evidence>, has_dialled: bool) -> Result<PeerEvidence, WireError> {
    let proto::Evidence { certificates, verified_at } = peer.ok_or(WireError::Field("certificates"))?;
    if certificates.is_empty() || certificates.len() > MAX_CHAIN {
        return Err(WireError::Field("certificates"));
    }
    Ok(PeerEvidence::handed_over(certificates, has_dialled, Duration::from_secs(verified_at)))
}

fn connection_from(message: proto::Connection) -> Result<(u32, MovedConnection), WireError> {
    let proto::Connection { stream, record, tracked } = message;
    let record = record::decode(record.ok_or(WireError::Field("record"))?)?;
    let conn = tracked.map(|tracked| {
        Ok::<_, WireError>(Connection {
            src: parsed(&tracked.src, "source")?,
            original_dst: tracked.original_dst,
            actual_dst: parsed(&tracked.actual_dst, "destination")?,
            protocol: *numbered(&Carrier::ALL, tracked.carrier, "carrier")?,
        })
    });
    Ok((stream, MovedConnection { record, conn: conn.transpose()? }))
}

fn parsed<T: FromStr>(text: &str, field: &'static str) -> Result<T, WireError> {
    text.parse().map_err(|_| WireError::Field(field))
}

fn numbered<'a, T>(all: &'a [T], number: u32, field: &'static str) -> Result<&'a T, WireError> {
    usize::try_from(number).ok().and_then(|at| all.get(at)).ok_or(WireError::Field(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::GiveUpReason;
    use crate::telemetry::{ConnectSummary, Labels, Party, ServiceLabels};
    use crate::types::{Direction, Reporter, ResponseFlag};

    fn party(name: &str) -> Party {
        Party {
            workload: format!("{name}-v1").as_str().into(),
            canonical_service: name.into(),
            canonical_revision: "v1".into(),
            namespace: "shop".into(),
            principal: Some(format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap()),
            app: name.into(),
            cluster: "east".into(),
            region: "r1".into(),
            zone: "z1".into(),
            known: true,
        }
    }

    fn moved() -> MovedConnection {
        let (src, dst) = ("10.0.0.1:40000".parse().unwrap(), "[2001:db8::1]:15008".parse().unwrap());
        let service =
            ServiceLabels { hostname: "web.shop.svc".into(), namespace: "shop".into(), name: "web".into() };
        let labels = Labels {
            reporter: Reporter::Destination,
            source: party("cart"),
            service,
            destination: party("web"),
            flag: ResponseFlag::None,
            mutual_tls: true,
        };
        let summary = ConnectSummary {
            tries: 2,
            tried: "10.0.0.9:15008 refused".to_owned(),
            gave_up: Some(GiveUpReason::OutOfTime),
        };
        let record = RecordParts {
            labels,
            direction: Direction::Inbound,
            src,
            src_pod: "cart-1".into(),
            dst,
            dst_pod: "web-1".into(),
            hbone: Some("web.shop.svc:80".parse().unwrap()),
            elapsed: Duration::from_micros(17),
            carried: [3, 4],
            handovers: 7,
            connect_summary: Some(summary),
        };
        let conn = Connection { src, original_dst: None, actual_dst: dst, protocol: Carrier::Hbone };
        MovedConnection { record, conn: Some(conn) }
    }

    #[test]
    fn a_connection_is_read_as_it_was_written_and_was_handed_over_once_more() {
        let item = encode(Thread::current(), &Kind::Pair { inbound: true }, &[(0, moved())]);
        let unit = decode(&item).unwrap();
        assert!(matches!(unit.kind, WireKind::Pair { inbound: true }));
        let mut expected = moved();
        expected.record.handovers += 1;
        assert_eq!(unit.connections, HashMap::from([(0, expected)]));
    }

    #[test]
    fn two_connections_of_one_stream_are_refused() {
        let item = encode(Thread::current(), &Kind::Pair { inbound: true }, &[(3, moved()), (3, moved())]);
        assert_eq!(decode(&item).unwrap_err().to_string(), "description of a unit: invalid streams");
    }

    #[test]
    fn a_tunnel_without_certificates_is_refused() {
        let key = PoolKey {
            source: "spiffe://td/ns/shop/sa/cart".parse().unwrap(),
            destinations: Vec::new(),
            address: "10.0.0.2:15008".parse().unwrap(),
            source_ip: "10.0.0.1".parse().unwrap(),
        };
        let item = encode(Thread::current(), &Kind::Client(&key, None), &[]);
        assert_eq!(decode(&item).unwrap_err().to_string(), "description of a unit: invalid certificates");
        let evidence = PeerEvidence::handed_over(vec![vec![1, 2]], false, Duration::from_secs(5));
        let item = encode(Thread::current(), &Kind::Client(&key, Some(&evidence)), &[]);
        assert!(matches!(decode(&item).unwrap().kind, WireKind::Client(read, peer)
            if read == key && peer.chain().eq([[1, 2]]) && peer.verified_at().as_secs() == 5));
    }
}
