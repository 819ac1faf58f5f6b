//! Fuzz test: arbitrary bytes as a query, from parsing to the response.

use std::net::IpAddr;

use crate::query::{self, HEADER, Kind, Message};
use crate::response::{Failure, Transport, addresses, failure};

/// Valid queries, of which inputs are mutations.
const QUESTIONS: [&[u8]; 4] = [
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x01a\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01",
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03WEB\x00\x00\x1c\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00",
    b"\x12\x34\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01\x01*\x02ns\x00\x00\xff\x00\x01\x00\x00\x29\x02\x00\x00\x00\x80\x00\x00\x04\x00\x0a\x00\x00",
    b"\x12\x34\x28\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x00\xfc\x00\x01\xc0\x0c\x00\x01\x00\x01",
];

/// One of the queries with some bytes replaced: a count, then offsets and bytes; the rest is appended.
fn question(bytes: &[u8]) -> Vec<u8> {
    let [which, changes, rest @ ..] = bytes else { return bytes.to_vec() };
    if *which > 200 {
        return rest.to_vec();
    }
    let mut message = QUESTIONS[usize::from(*which) % QUESTIONS.len()].to_vec();
    let (changed, rest) = rest.split_at((2 * usize::from(*changes % 8)).min(rest.len()));
    for change in changed.chunks_exact(2) {
        let place = usize::from(change[0]) % message.len();
        message[place] = change[1];
    }
    message.extend(rest.iter().take(usize::from(*changes) / 8));
    message
}

#[test]
fn arbitrary_queries_are_handled() {
    let mut asked = 0_u64;
    bolero::check!().with_max_len(256).for_each(|bytes: &[u8]| {
        let message = question(bytes);
        let end = query::question_end(&message);
        assert!(end.is_none_or(|end| end > HEADER && end <= message.len()));
        let label = query::type_label(&message);
        assert!(!label.is_empty() && label.len() < 32, "a label that has no bound: {label}");
        let _ = query::is_stream(&message);
        if let Message::Name(asked) = query::read(&message) {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_*.".contains(c);
            assert!(asked.name.chars().all(plain), "{:?}", asked.name);
            assert!(!asked.name.starts_with('.') && !asked.name.ends_with('.'));
            assert_eq!(asked.id.to_be_bytes(), message[..2]);
            assert!(asked.edns.is_none_or(|most| most >= query::PLAIN_LIMIT));
            let many = vec![IpAddr::from([10, 0, 0, 1]); bytes.len()];
            if let Ok(answer) = addresses(&asked, None, &many, Transport::Udp) {
                let most = asked.edns.unwrap_or(query::PLAIN_LIMIT);
                assert!(answer.len() <= usize::from(most), "{} of {most} bytes", answer.len());
            }
        }
        if let Some(answer) = failure(&message, Failure::Format) {
            assert_eq!(answer[..2], message[..2]);
            assert!(answer[2] & 0x80 != 0 && answer.len() <= message.len().max(HEADER));
        }
    });
    for which in 0..QUESTIONS.len() {
        let whole = question(&[u8::try_from(which).unwrap(), 0]);
        asked += u64::from(matches!(query::read(&whole), Message::Name(asked) if asked.kind != Kind::Other));
    }
    assert_eq!(asked, 2, "what inputs are made of does not mean what it should");
}
