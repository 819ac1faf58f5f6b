//! A log record between values and its message.

use std::time::Duration;

use isthmus_proto::handover as proto;

use super::{WireError, number, numbered, parsed};
use crate::retry::GiveUpReason;
use crate::telemetry::{ConnectSummary, Labels, Party, RecordParts, ServiceLabels};
use crate::types::{Direction, Reporter, ResponseFlag};

pub(super) fn encode(parts: &RecordParts) -> proto::Record {
    let RecordParts {
        labels: Labels { reporter, source, service, destination, flag: _, mutual_tls },
        direction,
        src,
        src_pod,
        dst,
        dst_pod,
        hbone,
        elapsed,
        carried: [sent, received],
        handovers,
        connect_summary,
    } = parts;
    let attempts = connect_summary.as_ref().map(|ConnectSummary { tries, tried, gave_up }| proto::Attempts {
        tries: *tries,
        tried: tried.clone(),
        gave_up: gave_up.map(|reason| reason.as_str().to_owned()),
    });
    proto::Record {
        outbound: *direction == Direction::Outbound,
        reporter: number(&Reporter::ALL, reporter),
        source: Some(party(source)),
        source_pod: src_pod.as_str().to_owned(),
        src: src.to_string(),
        destination: Some(party(destination)),
        destination_pod: dst_pod.as_str().to_owned(),
        dst: dst.to_string(),
        hbone: hbone.as_ref().map(ToString::to_string),
        service_hostname: service.hostname.as_str().to_owned(),
        service_namespace: service.namespace.as_str().to_owned(),
        service_name: service.name.as_str().to_owned(),
        mutual_tls: *mutual_tls,
        elapsed: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        sent: *sent,
        received: *received,
        handovers: handovers.saturating_add(1),
        attempts,
    }
}

fn party(party: &Party) -> proto::Party {
    let Party {
        workload,
        canonical_service,
        canonical_revision,
        namespace,
        principal,
        app,
        cluster,
        region,
        zone,
        known,
    } = party;
    proto::Party {
        workload: workload.as_str().to_owned(),
        canonical_service: canonical_service.as_str().to_owned(),
        canonical_revision: canonical_revision.as_str().to_owned(),
        namespace: namespace.as_str().to_owned(),
        principal: principal.as_ref().map(ToString::to_string),
        app: app.as_str().to_owned(),
        cluster: cluster.as_str().to_owned(),
        region: region.as_str().to_owned(),
        zone: zone.as_str().to_owned(),
        known: *known,
    }
}

pub(super) fn decode(message: proto::Record) -> Result<RecordParts, WireError> {
    let service = ServiceLabels {
        hostname: message.service_hostname.as_str().into(),
        namespace: message.service_namespace.as_str().into(),
        name: message.service_name.as_str().into(),
    };
    let labels = Labels {
        reporter: *numbered(&Reporter::ALL, message.reporter, "reporter")?,
        source: party_from(message.source)?,
        service,
        destination: party_from(message.destination)?,
        flag: ResponseFlag::None,
        mutual_tls: message.mutual_tls,
    };
    let attempts = message.attempts.map(|attempts| ConnectSummary {
        tries: attempts.tries,
        tried: attempts.tried,
        gave_up: attempts.gave_up.as_deref().and_then(GiveUpReason::named),
    });
    if message.handovers == 0 {
        return Err(WireError::Field("number of hand-overs"));
    }
    Ok(RecordParts {
        labels,
        direction: if message.outbound { Direction::Outbound } else { Direction::Inbound },
        src: parsed(&message.src, "source")?,
        src_pod: message.source_pod.as_str().into(),
        dst: parsed(&message.dst, "destination")?,
        dst_pod: message.destination_pod.as_str().into(),
        hbone: message.hbone.map(|authority| parsed(&authority, "authority")).transpose()?,
        elapsed: Duration::from_micros(message.elapsed),
        carried: [message.sent, message.received],
        handovers: message.handovers,
        connect_summary: attempts,
    })
}

fn party_from(message: Option<proto::Party>) -> Result<Party, WireError> {
    let message = message.ok_or(WireError::Field("party"))?;
    Ok(Party {
        workload: message.workload.as_str().into(),
        canonical_service: message.canonical_service.as_str().into(),
        canonical_revision: message.canonical_revision.as_str().into(),
        namespace: message.namespace.as_str().into(),
        principal: message.principal.map(|id| parsed(&id, "principal")).transpose()?,
        app: message.app.as_str().into(),
        cluster: message.cluster.as_str().into(),
        region: message.region.as_str().into(),
        zone: message.zone.as_str().into(),
        known: message.known,
    })
}
