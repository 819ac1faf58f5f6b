//! Reads as much of a DNS message as is needed to know whose it is to answer: header, first question, and what EDNS
//! says of the size of answers. What cannot be read is somebody else's to judge.

use isthmus_state::dns::Family;
use simple_dns::{CLASS, Packet, PacketFlag, QCLASS, QTYPE, Question, TYPE};

/// Length of the header.
pub(crate) const HEADER: usize = 12;
/// Largest answer over UDP to a client that says nothing of larger ones.
pub(crate) const PLAIN_LIMIT: u16 = 512;
/// More additional records than any client sends.
const MOST_ADDITIONAL: u16 = 16;
/// What stands for a query type without a name.
const UNKNOWN_TYPE: &str = "unknown";

/// What a message is, as far as that matters here.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// Too short to be answered.
    Runt,
    /// An answer, which nobody asked for.
    Response,
    /// A question for addresses of a name that may be ours.
    Addresses(Addresses<'a>),
    /// Whatever else: not ours.
    Other,
}

/// A question for addresses.
#[derive(Debug)]
pub(crate) struct Addresses<'a> {
    pub(crate) id: u16,
    pub(crate) recursion_desired: bool,
    /// As it was asked, for the answer.
    pub(crate) question: Question<'a>,
    /// The name in text, in lower case, without the dot at its end.
    pub(crate) name: String,
    pub(crate) family: Family,
    /// Largest answer over UDP, when the client speaks EDNS.
    pub(crate) edns: Option<u16>,
}

/// Reads a message.
pub(crate) fn read(message: &[u8]) -> Message<'_> {
    if message.len() < HEADER {
        return Message::Runt;
    }
    if message[2] & 0x80 != 0 {
        return Message::Response;
    }
    addresses(message).map_or(Message::Other, Message::Addresses)
}

/// Whether there may be more than one answer, or none: zone transfers, and what is no query at all.
pub(crate) fn is_stream(message: &[u8]) -> bool {
    const TRANSFERS: [u16; 2] = [251, 252];
    let standard_query = message.get(2).is_some_and(|flags| flags & 0x78 == 0);
    let kind = question_end(message).and_then(|end| count(message, end - 4));
    !standard_query || kind.is_some_and(|kind| TRANSFERS.contains(&kind))
}

fn addresses(message: &[u8]) -> Option<Addresses<'_>> {
    let standard_query = message[2] & 0x78 == 0;
    if !standard_query || count(message, 4)? != 1 {
        return None;
    }
    let question = question(message)?;
    let family = match (question.qtype, question.qclass) {
        (QTYPE::TYPE(TYPE::A), QCLASS::CLASS(CLASS::IN)) => Family::V4,
        (QTYPE::TYPE(TYPE::AAAA), QCLASS::CLASS(CLASS::IN)) => Family::V6,
        _ => return None,
    };
    Some(Addresses {
        id: u16::from_be_bytes([message[0], message[1]]),
        recursion_desired: message[2] & 1 != 0,
        name: text(&question)?,
        question,
        family,
        edns: edns(message),
    })
}

/// The first question. It comes first in the message, so its name is never compressed.
fn question(message: &[u8]) -> Option<Question<'_>> {
    let end = question_end(message)?;
    // The parser reads whole messages: it is given this one, cut off after the question. A message that has more is
    // read as far as it says that there is one question and nothing else.
    let alone = end == message.len()
        && count(message, 6)? == 0
        && count(message, 8)? == 0
        && count(message, 10)? == 0;
    if alone {
        return Packet::parse(message).ok()?.questions.pop();
    }
    let mut cut = message[..end].to_vec();
    cut[6..HEADER].fill(0);
    Packet::parse(&cut).ok()?.questions.pop().map(Question::into_owned)
}

/// Where the first question ends; `None` when it is cut off or starts with a pointer.
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

/// The name in text; `None` when it holds what no name of the mesh does.
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
    // The counts are the client's word, and the parser makes room for that many records before it reads them.
    let few = count(message, 6)? == 0 && count(message, 8)? == 0 && count(message, 10)? <= MOST_ADDITIONAL;
    let packet = few.then(|| Packet::parse(message).ok())??;
    packet.opt().map(|opt| opt.udp_packet_size.max(PLAIN_LIMIT))
}

/// The type that is asked for, as metrics name it: `a`, `aaaa`, `mx`.
pub(crate) fn type_label(message: &[u8]) -> String {
    let code = question_end(message).and_then(|end| count(message, end - 4));
    match code.and_then(|code| QTYPE::try_from(code).ok()) {
        Some(QTYPE::TYPE(TYPE::Unknown(_))) | None => UNKNOWN_TYPE.to_owned(),
        Some(QTYPE::TYPE(known)) => format!("{known:?}").to_ascii_lowercase(),
        Some(other) => format!("{other:?}").to_ascii_lowercase(),
    }
}

/// Flags that every answer of ours has: it is one, it is ours to give, and recursion is to be had.
pub(crate) fn answer_flags(recursion_desired: bool) -> PacketFlag {
    let ours = PacketFlag::RESPONSE | PacketFlag::AUTHORITATIVE_ANSWER | PacketFlag::RECURSION_AVAILABLE;
    if recursion_desired { ours | PacketFlag::RECURSION_DESIRED } else { ours }
}

#[cfg(test)]
pub(crate) mod tests;
