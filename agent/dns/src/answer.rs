//! Makes answers. Pure: bytes in, bytes out.

use std::net::IpAddr;

use simple_dns::rdata::{A, AAAA, CNAME, OPT, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, ResourceRecord, SimpleDnsError};

use crate::query::{self, Addresses, HEADER, PLAIN_LIMIT};

/// How long an answer may be remembered, in seconds.
const TTL: u32 = 30;

/// What went wrong with a query, as its answer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Failure {
    /// The message makes no sense as a query.
    Format = 1,
    /// Nobody could be asked, or nobody answered.
    Server = 2,
}

/// How an answer travels.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Transport {
    /// In one datagram, as large as the client takes.
    Udp,
    /// As large as it must be.
    Tcp,
}

// === impl Transport ===

impl Transport {
    /// Name of it in metrics.
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

/// Answers with addresses, none being an answer too. `canonical` is the name that they belong to, when it is another
/// than the one asked for. What does not fit is left out, and the answer says that it is cut.
pub(crate) fn addresses(
    query: &Addresses<'_>,
    canonical: Option<&str>,
    addresses: &[IpAddr],
    transport: Transport,
) -> Result<Vec<u8>, SimpleDnsError> {
    let limit = transport.limit(query.edns);
    let whole = build(query, canonical, addresses, false)?;
    if whole.len() <= limit {
        return Ok(whole);
    }
    // Every address takes as many bytes as the next, so the number that fits is found at once.
    let fixed = build(query, canonical, &[], true)?.len();
    let each = (whole.len() - fixed).div_ceil(addresses.len().max(1));
    let fitting = limit.saturating_sub(fixed) / each.max(1);
    build(query, canonical, &addresses[..fitting.min(addresses.len())], true)
}

fn build(
    query: &Addresses<'_>,
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

/// Answers that it did not work: the query's id, opcode and first question, and nothing else.
pub(crate) fn failure(message: &[u8], failure: Failure) -> Option<Vec<u8>> {
    let header = message.get(..HEADER)?;
    let question = query::question_end(message).filter(|_| header[4..6] != [0, 0]);
    let mut answer = Vec::with_capacity(question.unwrap_or(HEADER));
    answer.extend_from_slice(&header[..2]);
    // Response, with the opcode and "recursion desired" of the query; then "recursion available" and the code.
    answer.extend_from_slice(&[0x80 | header[2] & 0x79, 0x80 | failure as u8]);
    answer.extend_from_slice(&[0, u8::from(question.is_some()), 0, 0, 0, 0, 0, 0]);
    answer.extend_from_slice(question.and_then(|end| message.get(HEADER..end)).unwrap_or_default());
    Some(answer)
}

#[cfg(test)]
mod tests;
