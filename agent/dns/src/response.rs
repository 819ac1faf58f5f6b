//! Builds DNS responses. Pure: bytes in, bytes out.

use std::net::IpAddr;

use simple_dns::rdata::{A, AAAA, CNAME, OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, ResourceRecord, SimpleDnsError};

use crate::query::{self, HEADER, NameQuery, PLAIN_LIMIT};

/// TTL of answers, in seconds: as istio's DNS proxy.
const TTL: u32 = 30;

/// The RCODE of a failed query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// FORMERR: the message is not a valid query.
    Format = 1,
    /// SERVFAIL: no DNS server could be reached, or none answered.
    Server = 2,
}

/// Transport of a query and its response.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Transport {
    /// One datagram, limited to the size that the client accepts.
    Udp,
    /// Up to 65535 bytes.
    Tcp,
}

// === impl Transport ===

impl Transport {
    /// Its metric label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }

    fn limit(self, edns: Option<u16>) -> usize {
        match self {
            Self::Udp => edns.unwrap_or(PLAIN_LIMIT).into(),
            Self::Tcp => u16::MAX.into(),
        }
    }
}

/// A response with these addresses; none means NODATA. `canonical` is the name that they belong to if it differs from the
/// queried one (a CNAME record). Records that do not fit are left out and the response has the TC bit.
pub(crate) fn addresses(
    query: &NameQuery<'_>,
    canonical: Option<&str>,
    addresses: &[IpAddr],
    transport: Transport,
) -> Result<Vec<u8>, SimpleDnsError> {
    let limit = transport.limit(query.edns);
    let whole = build(query, canonical, addresses, false)?;
    if whole.len() <= limit {
        return Ok(whole);
    }
    // Every record has the same size, so the number that fits can be computed.
    let fixed = build(query, canonical, &[], true)?.len();
    let each = (whole.len() - fixed).div_ceil(addresses.len().max(1));
    let fitting = limit.saturating_sub(fixed) / each.max(1);
    build(query, canonical, &addresses[..fitting.min(addresses.len())], true)
}

fn build(
    query: &NameQuery<'_>,
    canonical: Option<&str>,
    addresses: &[IpAddr],
    cut: bool,
) -> Result<Vec<u8>, SimpleDnsError> {
    let mut packet = Packet::new_reply(query.id);
    packet.set_flags(query::answer_flags(query.recursion_desired));
    if cut {
        packet.set_flags(PacketFlag::TRUNCATION);
    }
    let asked = &query.question.qname;
    let owner = match canonical {
        Some(canonical) => Name::new(canonical)?,
        None => asked.clone(),
    };
    if canonical.is_some() {
        let alias = RData::CNAME(CNAME(owner.clone()));
        packet.answers.push(ResourceRecord::new(asked.clone(), CLASS::IN, TTL, alias));
    }
    packet.answers.extend(addresses.iter().map(|address| {
        let data = match address {
            IpAddr::V4(v4) => RData::A(A::from(*v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA::from(*v6)),
        };
        ResourceRecord::new(owner.clone(), CLASS::IN, TTL, data)
    }));
    packet.questions.push(query.question.clone());
    if let Some(size) = query.edns {
        *packet.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: size, version: 0 });
    }
    packet.build_bytes_vec_compressed()
}

/// A failure response: id, opcode and first question of the query.
pub(crate) fn failure(message: &[u8], failure: Failure) -> Option<Vec<u8>> {
    without_records(message, failure as u8)
}

/// A response that says that the name exists and has no records of this type (RFC 2308).
pub(crate) fn no_data(message: &[u8]) -> Option<Vec<u8>> {
    without_records(message, 0)
}

fn without_records(message: &[u8], code: u8) -> Option<Vec<u8>> {
    let header = message.get(..HEADER)?;
    let question = query::question_end(message).filter(|_| header[4..6] != [0, 0]);
    let mut answer = Vec::with_capacity(question.unwrap_or(HEADER));
    answer.extend_from_slice(&header[..2]);
    // QR with opcode and RD of the query; then RA and the RCODE.
    answer.extend_from_slice(&[0x80 | header[2] & 0x79, 0x80 | code]);
    answer.extend_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(question.and_then(|end| message.get(HEADER..end)).unwrap_or_default());
    Some(answer)
}

#[cfg(test)]
mod tests;
