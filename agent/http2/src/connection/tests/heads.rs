//! Heads of requests and responses (RFC 9113 §8.1 to §8.5).

use super::wire::{OK, TARGET, block, client, connect, feed, frame, headers, kinds, output, server};
use crate::frame::{flag, kind};
use crate::head::Malformed;
use crate::{Code, Event, ResetCause, SendError, Violation};

/// Fields of a request.
type Fields = &'static [(&'static str, &'static str)];

#[test]
fn section_8_5_a_connect_and_its_labels_are_reported() {
    let mut server = server();
    let labels =
        [("baggage", "a=1"), ("forwarded", "for=\"10.0.0.1:1\""), ("baggage", "b=2"), ("x-empty", "")];
    let events = feed(&mut server, &headers(1, &[&TARGET[..], &labels].concat(), false)).unwrap();
    let [Event::Request { stream: 1, head }] = &events[..] else { panic!("{events:?}") };
    assert!(head.is_connect());
    assert_eq!((head.method(), head.authority(), head.path()), ("CONNECT", Some("10.0.0.1:80"), None));
    assert_eq!(head.fields.all("baggage").collect::<Vec<_>>(), [b"a=1", b"b=2"]);
    assert_eq!(head.fields.get("x-empty"), Some(&b""[..]));
}

#[test]
fn other_requests_are_reported_so_that_they_can_be_refused() {
    let mut server = server();
    let get = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "a"),
        (":path", "/x?y"),
        ("te", "trailers"),
    ];
    let events = feed(&mut server, &headers(1, &get, true)).unwrap();
    let [Event::Request { head, .. }, Event::End { stream: 1 }] = &events[..] else { panic!("{events:?}") };
    assert!(!head.is_connect());
    assert_eq!((head.method(), head.path(), head.scheme()), ("GET", Some("/x?y"), Some("https")));
    server.send_response(1, 405, &[("allow", "CONNECT")], true).unwrap();
    let sent = output(&mut server);
    assert_eq!((sent[0].kind, sent[0].flags), (kind::HEADERS, flag::END_STREAM | flag::END_HEADERS));
    assert_eq!(server.active_streams(), 0);
}

#[test]
fn sections_8_2_and_8_3_malformed_requests_cost_their_stream() {
    use Malformed as M;
    let cases: [(Fields, Malformed); 22] = [
        (&[], M::Missing),
        (&[(":method", "GET"), (":scheme", "http"), (":authority", "a")], M::Missing),
        (&[(":method", "GET"), (":scheme", "http"), (":path", "")], M::Missing),
        (&[(":scheme", "http"), (":path", "/")], M::Missing),
        (&[(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")], M::ConnectTarget),
        (&[(":method", "CONNECT"), (":authority", "a:1"), (":scheme", "https")], M::ConnectTarget),
        (&[(":method", "CONNECT"), (":method", "CONNECT"), (":authority", "a:1")], M::Duplicate),
        (&[(":method", "CONNECT"), (":authority", "a:1"), (":authority", "b:1")], M::Duplicate),
        (&[(":method", "CONNECT"), ("a", "b"), (":authority", "a:1")], M::Pseudo),
        (&[(":method", "CONNECT"), (":authority", "a:1"), (":status", "200")], M::Pseudo),
        (&[(":method", "CONNECT"), (":authority", "a:1"), (":protocol", "websocket")], M::Pseudo),
        (&[(":method", "CONNECT"), (":authority", "a:1 "), ("a", "b")], M::Value),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("Upper", "b")], M::Name),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("a b", "c")], M::Name),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("", "")], M::Name),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("a", "b\r\nc: d")], M::Value),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("a", " b")], M::Value),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("a", "b\t")], M::Value),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("a", "\0")], M::Value),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("connection", "close")], M::ConnectionSpecific),
        (
            &[(":method", "CONNECT"), (":authority", "a:1"), ("transfer-encoding", "chunked")],
            M::ConnectionSpecific,
        ),
        (&[(":method", "CONNECT"), (":authority", "a:1"), ("te", "gzip")], M::ConnectionSpecific),
    ];
    for (fields, malformed) in cases {
        let mut server = server();
        assert_eq!(feed(&mut server, &headers(1, fields, false)), Ok(vec![]), "{fields:?}");
        let sent = output(&mut server);
        assert_eq!((sent[0].kind, sent[0].stream, sent[0].number()), (kind::RST_STREAM, 1, 1), "{fields:?}");
        let list = fields.iter().copied().collect();
        assert_eq!(crate::RequestHead::new(list), Err(malformed), "{fields:?}");
        assert_eq!(feed(&mut server, &connect(3)).unwrap().len(), 1, "the connection goes on");
    }
}

#[test]
fn section_8_3_2_malformed_responses_cost_their_stream() {
    let cases: [(Fields, bool); 10] = [
        (&[], false),
        (&[(":status", "20")], false),
        (&[(":status", "2000")], false),
        (&[(":status", "+20")], false),
        (&[(":status", "099")], false),
        (&[(":status", "101")], false),
        (&[(":status", "100")], true),
        (&[(":status", "200"), (":status", "200")], false),
        (&[(":status", "200"), (":authority", "a")], false),
        (&[(":status", "200"), ("a", "\u{7f}")], false),
    ];
    for (fields, end_stream) in cases {
        let mut client = client();
        client.send_connect("a:1", &[]).unwrap();
        let events = feed(&mut client, &headers(1, fields, end_stream)).unwrap();
        let [Event::Reset { stream: 1, code: Code::PROTOCOL_ERROR, cause }] = events[..] else {
            panic!("{events:?}")
        };
        assert!(matches!(cause, ResetCause::Violation(Violation::Malformed(_))));
    }
}

#[test]
fn section_8_1_interim_responses_are_read_over() {
    let mut client = client();
    client.send_connect("a:1", &[]).unwrap();
    let hints = headers(1, &[(":status", "103"), ("link", "x")], false);
    let input = [hints.clone(), hints, headers(1, &[(":status", "503"), ("baggage", "b")], true)].concat();
    let events = feed(&mut client, &input).unwrap();
    let [Event::Response { stream: 1, head }, Event::End { stream: 1 }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((head.status, head.fields.get("baggage")), (503, Some(&b"b"[..])));
}

#[test]
fn section_8_1_trailers_end_a_stream_and_nothing_else() {
    let mut client = client();
    for _ in 0..3 {
        client.send_connect("a:1", &[]).unwrap();
    }
    feed(&mut client, &[headers(1, &OK, false), headers(3, &OK, false), headers(5, &OK, false)].concat())
        .unwrap();
    let events = feed(&mut client, &headers(1, &[("a", "b")], true)).unwrap();
    assert!(
        matches!(&events[..], [Event::Trailers { stream: 1, fields }, Event::End { stream: 1 }] if fields.len() == 1)
    );
    for (stream, input) in [(3, headers(3, &[("a", "b")], false)), (5, headers(5, &OK, true))] {
        let events = feed(&mut client, &input).unwrap();
        assert!(
            matches!(events[..], [Event::Reset { stream: s, code: Code::PROTOCOL_ERROR, .. }] if s == stream)
        );
    }
}

#[test]
fn sections_6_2_and_6_10_a_block_in_pieces_with_padding_and_priority_is_one_head() {
    let mut server = server();
    let block = block(&TARGET);
    let (first, rest) = block.split_at(3);
    let start = [&[2, 0, 0, 0, 0, 9][..], first, &[0, 0]].concat();
    let mut input = frame(kind::HEADERS, flag::PADDED | flag::PRIORITY | flag::END_STREAM, 1, &start);
    for byte in rest {
        input.extend(frame(kind::CONTINUATION, 0, 1, &[*byte]));
    }
    input.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]));
    let whole = feed(&mut server, &input);
    assert!(whole.is_err(), "more than 32 pieces");
    let mut server = super::wire::server();
    let mut input = frame(kind::HEADERS, flag::PADDED | flag::PRIORITY | flag::END_STREAM, 1, &start);
    for part in rest.chunks(9) {
        input.extend(frame(kind::CONTINUATION, 0, 1, part));
    }
    input.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]));
    let events = feed(&mut server, &input).unwrap();
    assert!(matches!(events[..], [Event::Request { stream: 1, .. }, Event::End { stream: 1 }]));
}

#[test]
fn heads_are_sent_as_they_are_received_and_large_ones_in_pieces() {
    let (mut client, mut server) = (client(), server());
    let long = "v".repeat(40_000);
    let stream = client.send_connect("10.0.0.1:80", &[("baggage", &long), ("traceparent", "00-1")]).unwrap();
    let sent = client.output().to_vec();
    assert_eq!(kinds(&mut client), [kind::HEADERS, kind::CONTINUATION, kind::CONTINUATION]);
    let events = feed(&mut server, &sent).unwrap();
    let [Event::Request { head, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(head.fields.get("baggage"), Some(long.as_bytes()));
    assert_eq!(head.fields.get("traceparent"), Some(&b"00-1"[..]));
    server.send_response(stream, 200, &[("baggage", "x")], false).unwrap();
    let answer = server.output().to_vec();
    let events = feed(&mut client, &answer).unwrap();
    let [Event::Response { head, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((head.status, head.fields.get("baggage")), (200, Some(&b"x"[..])));
}

#[test]
fn what_must_not_be_sent_is_refused_and_nothing_is_sent() {
    let (mut client, mut server) = (client(), server());
    for fields in [&[("Baggage", "x")][..], &[("a", "b\n")], &[("", "x")], &[(":path", "/")]] {
        assert_eq!(client.send_connect("a:1", fields), Err(SendError::Field));
    }
    for authority in ["", "a b", "a\r\n", "ä:1"] {
        assert_eq!(client.send_connect(authority, &[]), Err(SendError::Field), "{authority}");
    }
    assert_eq!(client.send_response(1, 200, &[], false), Err(SendError::Closed));
    assert_eq!(server.send_connect("a:1", &[]), Err(SendError::State));
    feed(&mut server, &connect(1)).unwrap();
    assert_eq!(server.reserve_data(1, 1), 0, "not before the response");
    assert_eq!(server.data_header(1, 0, true), Err(SendError::State));
    for status in [0, 100, 199, 1000] {
        assert_eq!(server.send_response(1, status, &[], false), Err(SendError::State));
    }
    assert_eq!(server.send_response(1, 200, &[("a", " ")], false), Err(SendError::Field));
    server.send_response(1, 200, &[], false).unwrap();
    assert_eq!(server.send_response(1, 200, &[], false), Err(SendError::State));
    assert_eq!(kinds(&mut server), [kind::HEADERS]);
    assert!(client.output().is_empty());
}
