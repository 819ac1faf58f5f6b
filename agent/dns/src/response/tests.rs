use super::*;
use crate::query::tests::{opt, plain, query};
use crate::query::{Message, read};

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn answer(message: &[u8], canonical: Option<&str>, ips: &[IpAddr], transport: Transport) -> Vec<u8> {
    let Message::Name(query) = read(message) else { panic!("not a question for addresses") };
    addresses(&query, canonical, ips, transport).unwrap()
}

#[test]
fn the_bytes_of_an_answer() {
    let message = plain("Web.ns", 1);
    let got = answer(&message, None, &ips(&["10.96.0.1", "10.96.0.2"]), Transport::Udp);
    let want = [
        &[0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 2, 0, 0, 0, 0][..],
        &message[12..],
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 1],
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 2],
    ]
    .concat();
    assert_eq!(got, want);
}

#[test]
fn the_bytes_of_an_answer_under_another_name() {
    let message = plain("web.ns.x", 28);
    let got = answer(&message, Some("web.ns"), &ips(&["fd00::1"]), Transport::Tcp);
    let name = u8::try_from(message.len() + 12).unwrap();
    let want = [
        &[0xab, 0xcd, 0x85, 0x80, 0, 1, 0, 2, 0, 0, 0, 0][..],
        &message[12..],
        &[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 30, 0, 8, 3, b'w', b'e', b'b', 2, b'n', b's', 0],
        &[0xc0, name, 0, 28, 0, 1, 0, 0, 0, 30, 0, 16],
        &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    ]
    .concat();
    assert_eq!(got, want);
}

#[test]
fn the_bytes_of_an_empty_answer_with_edns_and_without_recursion() {
    let mut message = query("web", 28, 1, [0, 0, 1], &opt(1232));
    message[2] = 0;
    let got = answer(&message, None, &[], Transport::Udp);
    let question_end = message.len() - 11;
    let want = [
        &[0xab, 0xcd, 0x84, 0x80, 0, 1, 0, 0, 0, 0, 0, 1][..],
        &message[12..question_end],
        &[0, 0, 41, 1232_u16.to_be_bytes()[0], 1232_u16.to_be_bytes()[1], 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(got, want);
}

#[test]
fn an_answer_too_long_for_udp_is_truncated_with_tc_set() {
    let many: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    let records = |answer: &[u8]| u16::from_be_bytes([answer[6], answer[7]]);
    let cut = |answer: &[u8]| answer[2] & 2 != 0;
    let message = plain("web", 1);
    // 12 of header, 9 of question, 16 for each record.
    let small = answer(&message, None, &many, Transport::Udp);
    assert_eq!((records(&small), cut(&small), small.len()), (30, true, 12 + 9 + 30 * 16));
    let fits = answer(&message, None, &many[..30], Transport::Udp);
    assert_eq!((records(&fits), cut(&fits)), (30, false));
    let large = answer(&query("web", 1, 1, [0, 0, 1], &opt(4096)), None, &many, Transport::Udp);
    assert_eq!((records(&large), cut(&large)), (100, false));
    let middle = answer(&query("web", 1, 1, [0, 0, 1], &opt(1232)), None, &many, Transport::Udp);
    assert!(cut(&middle) && middle.len() <= 1232 && middle.len() > 1232 - 16);
    let tcp = answer(&message, None, &many, Transport::Tcp);
    assert_eq!((records(&tcp), cut(&tcp)), (100, false));
    let named = answer(&plain("web.ns.x", 1), Some("web.ns"), &many, Transport::Udp);
    assert!(cut(&named) && named.len() <= 512 && named.len() > 512 - 16);
}

#[test]
fn a_failure_keeps_id_opcode_and_question() {
    let message = query("web", 15, 1, [0, 0, 1], &opt(4096));
    let question = &message[12..message.len() - 11];
    let want = [&[0xab, 0xcd, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0][..], question].concat();
    assert_eq!(failure(&message, Failure::Server).unwrap(), want);
    // An answer that came as a query, with an opcode, without recursion, and nothing after the header.
    let odd = [1, 2, 0xa8, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    let want = [1, 2, 0xa8, 0x81, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(failure(&odd, Failure::Format).unwrap(), want);
    let unreadable = [1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0];
    assert_eq!(failure(&unreadable, Failure::Server).unwrap()[4..], [0; 8]);
    assert_eq!(failure(&odd[..11], Failure::Format), None);
}
