//! Parses as much of a DNS message as the decision to answer or to forward needs: header, first question, and the EDNS
//! payload size. A query that cannot be parsed is forwarded: the DNS server decides what it is.

use isthmus_state::dns::Family;
use simple_dns::{Packet, PacketFlag, QTYPE, Question, TYPE};

/// Length of the DNS header.
pub(crate) const HEADER: usize = 12;
/// Largest UDP response to a client without EDNS (RFC 1035, 4.2.1).
pub(crate) const PLAIN_LIMIT: u16 = 512;
/// Additional records beyond which EDNS is not looked for; clients send one or two.
const MOST_ADDITIONAL: u16 = 16;
/// Query types (RFC 1035, 3596, 9460) and the class of the Internet.
const A: u16 = 1;
const AAAA: u16 = 28;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
const INTERNET: u16 = 1;
/// Metric label of a query type without a name.
const UNKNOWN_TYPE: &str = "unknown";

/// A message by what is done with it.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// Too short to be answered.
    Runt,
    /// A response; a server never gets one.
    Response,
    /// A query for a name, which may be in the mesh.
    Name(NameQuery<'a>),
    /// Any other query: forwarded.
    Other,
}

/// A query for records of a name.
#[derive(Debug)]
pub(crate) struct NameQuery<'a> {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    /// The question as received, for the response; of a query of another kind only the name.
    pub(crate) question: Question<'a>,
    /// The name in lower case, without the final dot.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// UDP payload size, if the client uses EDNS.
    pub(crate) edns: Option<u16>,
}

/// What is asked of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Its addresses (A, AAAA).
    Addresses(Family),
    /// Where and how its services are reached (SVCB, HTTPS; RFC 9460), which may contain addresses.
    Binding,
    /// Anything else.
    Other,
}

/// Parses a message.
pub(crate) fn read(message: &[u8]) -> Message<'_> {
    if message.len() < HEADER {
        return Message::Runt;
    }
    if message[2] & 0x80 != 0 {
        return Message::Response;
    }
    name_query(message).map_or(Message::Other, Message::Name)
}

/// Whether the response may be several messages, or none: zone transfers, and opcodes other than QUERY.
pub(crate) fn is_stream(message: &[u8]) -> bool {
    const TRANSFERS: [u16; 2] = [251, 252];
    let standard_query = message.get(2).is_some_and(|flags| flags & 0x78 == 0);
    let kind = question_end(message).and_then(|end| count(message, end - 4));
    !standard_query || kind.is_some_and(|kind| TRANSFERS.contains(&kind))
}

/// Whether a response says that the name does not exist (NXDOMAIN).
pub(crate) fn denies_name(answer: &[u8]) -> bool {
    answer.get(3).is_some_and(|flags| flags & 0x0f == 3)
}

fn name_query(message: &[u8]) -> Option<NameQuery<'_>> {
    let standard_query = message[2] & 0x78 == 0;
    if !standard_query || count(message, 4)? != 1 {
        return None;
    }
    let end = question_end(message)?;
    let kind = match (count(message, end - 4)?, count(message, end - 2)?) {
        (A, INTERNET) => Kind::Addresses(Family::V4),
        (AAAA, INTERNET) => Kind::Addresses(Family::V6),
        (SVCB | HTTPS, INTERNET) => Kind::Binding,
        (_, INTERNET) => Kind::Other,
        _ => return None,
    };
    let question = question(message, end, kind)?;
    Some(NameQuery {
        id: u16::from_be_bytes([message[0], message[1]]),
        recursion_desired: message[2] & 1 != 0,
        name: text(&question)?,
        question,
        kind,
        edns: edns(message),
    })
}

/// The first question. Nothing precedes it, so its name is never compressed.
fn question(message: &[u8], end: usize, kind: Kind) -> Option<Question<'_>> {
    // The parser accepts whole messages only, so it gets a copy that ends after the question, with the other counts
    // set to 0.
    let alone = end == message.len()
        && count(message, 6)? == 0
        && count(message, 8)? == 0
        && count(message, 10)? == 0;
    if alone && kind != Kind::Other {
        return Packet::parse(message).ok()?.questions.pop();
    }
    let mut cut = message[..end].to_vec();
    cut[6..HEADER].fill(0);
    if kind == Kind::Other {
        // Only the name counts, and the parser does not know every type.
        cut[end - 4..end - 2].copy_from_slice(&A.to_be_bytes());
    }
    Packet::parse(&cut).ok()?.questions.pop().map(Question::into_owned)
}

/// Offset of the end of the first question; `None` when it is cut off or starts with a compression pointer.
pub(crate) fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *message.get(at)? {
            0 => break,
            length if length <= 63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    let end = at + 1 + 4;
    (end <= message.len()).then_some(end)
}

fn count(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]))
}

/// The name as text; `None` when it has characters that no name of the mesh has.
fn text(question: &Question<'_>) -> Option<String> {
    let mut name = String::new();
    for label in question.qname.as_bytes() {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*');
        if !label.iter().all(plain) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(name)
}

fn edns(message: &[u8]) -> Option<u16> {
    // The counts are not trusted: the parser allocates that many records before it reads them.
    let few = count(message, 6)? == 0 && count(message, 8)? == 0 && count(message, 10)? <= MOST_ADDITIONAL;
    let packet = few.then(|| Packet::parse(message).ok())??;
    packet.opt().map(|opt| opt.udp_packet_size.max(PLAIN_LIMIT))
}

/// The query type as a metric label: `a`, `aaaa`, `mx`.
pub(crate) fn type_label(message: &[u8]) -> String {
    let code = question_end(message).and_then(|end| count(message, end - 4));
    match code.and_then(|code| QTYPE::try_from(code).ok()) {
        Some(QTYPE::TYPE(TYPE::Unknown(_))) | None => UNKNOWN_TYPE.to_owned(),
        Some(QTYPE::TYPE(known)) => format!("{known:?}").to_ascii_lowercase(),
        Some(other) => format!("{other:?}").to_ascii_lowercase(),
    }
}

/// Flags of every response that is made here: QR, AA and RA, and RD as in the query.
pub(crate) fn answer_flags(recursion_desired: bool) -> PacketFlag {
    let ours = PacketFlag::RESPONSE | PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE;
    if recursion_desired { ours | PacketFlag::RECURSION_DESIRED } else { ours }
}

#[cfg(test)]
pub(crate) mod tests;
