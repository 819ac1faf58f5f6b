//! DATA and flow control (RFC 9113 §5.2, §6.1, §6.9).

use super::wire::{
    OK, client_with, connect, data, end, feed, frame, headers, kinds, output, server_with, serving, settings,
    tunnelling, window,
};
use crate::frame::{HEADER_LEN, MAX_U31, flag, kind};
use crate::{Code, Connection, Event, ResetCause, SendError, Settings, Violation};

fn small() -> Settings {
    Settings { stream_window: 100, connection_window: 65_535, ..Settings::default() }
}

/// A server with streams 1 and 3, whose windows are 100 bytes.
fn narrow() -> Connection {
    let mut server = server_with(small());
    for stream in [1, 3] {
        feed(&mut server, &connect(stream)).unwrap();
        server.send_response(stream, 200, &[], false).unwrap();
    }
    output(&mut server);
    server
}

#[test]
fn section_6_1_payload_is_a_range_of_the_input_and_padding_is_not() {
    let mut server = serving(1);
    let mut padded = frame(kind::DATA, flag::PADDED | flag::END_STREAM, 1, b"\x03hello\0\0\0");
    let mut input = data(1, b"ab");
    input.append(&mut padded);
    let events = feed(&mut server, &input).unwrap();
    let ranges = [9..11, 21..26].map(|range| Event::Data { stream: 1, range });
    assert_eq!(events, [&ranges[..], &[Event::End { stream: 1 }]].concat());
    assert_eq!(&input[21..26], b"hello");
    assert_eq!(server.receive_window(1).unwrap().1, 7, "padding was given back");
    let wrong = frame(kind::DATA, flag::PADDED, 1, b"\x02a");
    assert_eq!(feed(&mut serving(1), &wrong).unwrap_err().reason, Violation::Padding);
}

#[test]
fn section_6_1_a_frame_is_reported_in_parts_as_it_arrives() {
    let mut server = serving(1);
    let input = frame(kind::DATA, flag::END_STREAM, 1, &[7; 100]);
    assert_eq!(feed(&mut server, &input[..8]).unwrap(), []);
    assert_eq!(feed(&mut server, &input[8..9]).unwrap(), []);
    assert_eq!(feed(&mut server, &input[9..20]).unwrap(), [Event::Data { stream: 1, range: 0..11 }]);
    let last = [Event::Data { stream: 1, range: 0..89 }, Event::End { stream: 1 }];
    assert_eq!(feed(&mut server, &input[20..]).unwrap(), last);
}

#[test]
fn a_stream_that_is_reset_within_a_frame_gets_no_more_of_it() {
    let mut server = serving(1);
    let mut input = data(1, &[7; 100]);
    feed(&mut server, &input[..50]).unwrap();
    server.reset(1, Code::CANCEL);
    input.extend(frame(kind::PING, 0, 0, &[0; 8]));
    assert_eq!(feed(&mut server, &input[50..]).unwrap(), []);
    assert_eq!(kinds(&mut server), [kind::RST_STREAM, kind::PING]);
}

#[test]
fn section_6_9_credit_comes_back_with_use_at_a_quarter_of_the_window() {
    let mut server = narrow();
    feed(&mut server, &data(1, &[0; 60])).unwrap();
    assert!(server.output().is_empty(), "not by arriving");
    server.grant(1, 24);
    assert!(server.output().is_empty());
    server.grant(1, 1);
    let sent = output(&mut server);
    assert_eq!((sent[0].kind, sent[0].stream, sent[0].number(), sent.len()), (kind::WINDOW_UPDATE, 1, 25, 1));
    server.grant(1, 1000);
    assert_eq!(output(&mut server)[0].number(), 35, "no more than was received");
    for _ in 0..40 {
        feed(&mut server, &data(3, &[0; 100])).unwrap();
        server.grant(3, 100);
    }
    let sent = output(&mut server);
    let connection: Vec<u32> =
        sent.iter().filter(|frame| frame.stream == 0).map(super::wire::Frame::number).collect();
    assert_eq!(connection, [], "4,080 bytes are no quarter of 65,535");
    for _ in 0..124 {
        feed(&mut server, &data(3, &[0; 100])).unwrap();
        server.grant(3, 100);
    }
    let sent = output(&mut server);
    assert!(sent.iter().any(|frame| frame.stream == 0 && frame.number() >= 65_535 / 4));
}

#[test]
fn credit_comes_back_sooner_when_the_peer_has_little_left() {
    let mut server = narrow();
    feed(&mut server, &data(1, &[0; 90])).unwrap();
    server.grant(1, 9);
    assert!(server.output().is_empty());
    server.grant(1, 1);
    assert_eq!(output(&mut server)[0].number(), 10);
}

#[test]
fn section_6_9_1_data_beyond_a_window_is_an_error_of_the_stream_or_the_connection() {
    let mut server = narrow();
    let events = feed(&mut server, &[data(1, &[0; 100]), data(1, b"x"), data(3, b"y")].concat()).unwrap();
    let cause = ResetCause::Violation(Violation::WindowExceeded);
    let reset = Event::Reset { stream: 1, code: Code::FLOW_CONTROL_ERROR, cause };
    assert_eq!(events[1], reset);
    assert!(matches!(events[2], Event::Data { stream: 3, .. }), "the others go on");
    let sent = output(&mut server);
    assert_eq!((sent[0].kind, sent[0].stream, sent[0].number()), (kind::RST_STREAM, 1, 3));

    let settings = Settings { stream_window: 1 << 20, connection_window: 65_535, ..Settings::default() };
    let mut server = server_with(settings);
    feed(&mut server, &connect(1)).unwrap();
    for length in [16_384, 16_384, 16_384, 16_383] {
        feed(&mut server, &data(1, &vec![0; length])).unwrap();
    }
    let error = feed(&mut server, &data(1, b"x")).unwrap_err();
    assert_eq!((error.code, error.reason), (Code::FLOW_CONTROL_ERROR, Violation::WindowExceeded));
}

#[test]
fn section_6_9_2_our_window_holds_from_the_acknowledgement_on() {
    let mut server = Connection::server(small());
    let mut input = crate::frame::PREFACE.to_vec();
    input.extend([settings(&[]), connect(1), data(1, &[0; 200])].concat());
    let events = feed(&mut server, &input).unwrap();
    assert!(matches!(events.last(), Some(Event::Data { .. })), "sent under the default window");
    feed(&mut server, &frame(kind::SETTINGS, flag::ACK, 0, &[])).unwrap();
    server.grant(1, 150);
    // The window of 100 is at -100, and 150 more make it 50.
    feed(&mut server, &data(1, &[0; 50])).unwrap();
    assert!(matches!(feed(&mut server, &data(1, b"x")).unwrap()[..], [Event::Reset { .. }]));
}

#[test]
fn windows_grow_and_never_shrink() {
    let mut server = narrow();
    server.grow(1, 1000);
    let sent = output(&mut server);
    assert_eq!((sent[0].stream, sent[0].number()), (1, 900));
    server.grow(1, 10);
    server.grow(5, 10_000);
    assert_eq!(server.receive_window(1), Some((1000, 0)));
    feed(&mut server, &data(1, &[0; 1000])).unwrap();
    server.grow_connection(131_070);
    assert_eq!(output(&mut server)[0].number(), 65_535);
    server.grow(1, u32::MAX);
    assert_eq!(server.receive_window(1), Some((MAX_U31, 1000)));
}

#[test]
fn a_credit_goal_makes_the_window_of_the_connection_smaller_as_it_is_used() {
    let settings = Settings { stream_window: 1 << 20, connection_window: 1 << 18, ..Settings::default() };
    let mut server = server_with(settings);
    feed(&mut server, &connect(1)).unwrap();
    output(&mut server);
    server.set_credit_goal(65_535);
    assert_eq!(server.connection_window().size, 1 << 18, "the peer has this credit");
    for _ in 0..16 {
        feed(&mut server, &data(1, &[0; 16_384])).unwrap();
        server.grant(1, 16_384);
    }
    assert_eq!(server.connection_window().size, 65_535);
    let given: u32 = output(&mut server).iter().filter(|f| f.stream == 0).map(|f| f.number()).sum();
    assert_eq!(given + server.connection_window().pending, 65_535);
}

#[test]
fn section_6_9_sending_takes_credit_of_both_windows() {
    let mut client = tunnelling(2);
    assert_eq!(client.reserve_data(1, 100_000), 16_384, "one frame");
    assert_eq!(client.send_credit(1), 65_535);
    let header = client.data_header(1, 10, false).unwrap();
    assert_eq!(header, frame(kind::DATA, 0, 1, &[0; 10])[..HEADER_LEN]);
    assert_eq!(client.data_header(1, 16_385, false), Err(SendError::Credit));
    for length in [16_384, 16_384, 16_384, 16_373] {
        assert_eq!(client.reserve_data(1, length), length);
        client.data_header(1, length, false).unwrap();
    }
    assert_eq!(
        (client.reserve_data(1, 1), client.reserve_data(3, 1)),
        (0, 0),
        "the connection has none left"
    );
    assert_eq!(client.data_header(1, 1, false), Err(SendError::Credit));
    // Stream 1 lacks credit of its own as well.
    assert_eq!(feed(&mut client, &window(0, 100)), Ok(vec![Event::Window { stream: 3 }]));
    assert_eq!(feed(&mut client, &window(1, 50)), Ok(vec![Event::Window { stream: 1 }]));
    assert_eq!(feed(&mut client, &window(1, 50)), Ok(vec![]), "reported once");
    assert_eq!((client.reserve_data(1, 1000), client.reserve_data(3, 1000)), (100, 100));
    client.data_header(3, 100, true).unwrap();
    assert_eq!(client.data_header(3, 0, true), Err(SendError::Closed));
    assert_eq!(client.reserve_data(1, 1), 0);
    client.end_stream(1).unwrap();
    assert_eq!(output(&mut client), [super::wire::Frame { kind: 0, flags: 1, stream: 1, payload: vec![] }]);
    assert_eq!(feed(&mut client, &window(0, 100)), Ok(vec![]), "it no longer waits");
}

#[test]
fn streams_that_wait_are_reported_in_the_order_they_asked() {
    let mut client = tunnelling(4);
    let mut left = 65_535;
    while left > 0 {
        let part = client.reserve_data(1, left);
        client.data_header(1, part, false).unwrap();
        left -= part;
    }
    for stream in [7, 3, 5, 3] {
        assert_eq!(client.reserve_data(stream, 1), 0);
    }
    let order = [7, 3, 5].map(|stream| Event::Window { stream });
    assert_eq!(feed(&mut client, &window(0, 1)).unwrap(), order);
}

#[test]
fn section_6_9_2_the_peers_initial_window_changes_open_streams() {
    let mut client = tunnelling(1);
    client.data_header(1, 10_000, false).unwrap();
    feed(&mut client, &settings(&[(4, 5_000)])).unwrap();
    assert_eq!(client.reserve_data(1, 1), 0, "-5,000");
    feed(&mut client, &settings(&[(4, 10_000)])).unwrap();
    assert_eq!(client.reserve_data(1, 1), 0);
    let events = feed(&mut client, &settings(&[(4, 10_001)])).unwrap();
    assert_eq!(events, [Event::PeerSettings, Event::Window { stream: 1 }]);
    assert_eq!(client.reserve_data(1, 9), 1);
    feed(&mut client, &window(1, MAX_U31 - 1)).unwrap();
    let error = feed(&mut client, &settings(&[(4, 10_002)])).unwrap_err();
    assert_eq!((error.code, error.reason), (Code::FLOW_CONTROL_ERROR, Violation::WindowOverflow));
}

#[test]
fn section_6_9_1_a_window_above_the_maximum_is_an_error_of_the_stream_or_the_connection() {
    let mut client = tunnelling(1);
    let events = feed(&mut client, &window(1, MAX_U31)).unwrap();
    assert!(matches!(events[..], [Event::Reset { stream: 1, code: Code::FLOW_CONTROL_ERROR, .. }]));
    assert_eq!(feed(&mut client, &window(0, MAX_U31)).unwrap_err().reason, Violation::WindowOverflow);
    let mut client = tunnelling(1);
    let events = feed(&mut client, &window(1, 0)).unwrap();
    assert!(matches!(events[..], [Event::Reset { stream: 1, code: Code::PROTOCOL_ERROR, .. }]));
}

#[test]
fn bytes_of_a_stream_that_ended_keep_their_credit_until_they_are_granted() {
    let mut client = client_with(Settings { connection_window: 65_535, ..Settings::default() });
    let stream = client.send_connect("a:1", &[]).unwrap();
    feed(&mut client, &[headers(stream, &OK, false), data(stream, &[0; 16_384]), end(stream)].concat())
        .unwrap();
    client.end_stream(stream).unwrap();
    output(&mut client);
    assert_eq!(client.active_streams(), 0);
    assert_eq!(client.receive_window(stream).unwrap().1, 16_384);
    client.grant(stream, 16_384);
    let sent = output(&mut client);
    assert_eq!((sent[0].stream, sent[0].number(), sent.len()), (0, 16_384, 1));
    assert_eq!(client.receive_window(stream), None);
    // Thrown away instead: the same, and no RST_STREAM for a stream that has ended.
    let stream = client.send_connect("a:1", &[]).unwrap();
    feed(&mut client, &[headers(stream, &OK, false), data(stream, &[0; 16_384]), end(stream)].concat())
        .unwrap();
    client.end_stream(stream).unwrap();
    output(&mut client);
    client.reset(stream, Code::CANCEL);
    assert_eq!(kinds(&mut client), [kind::WINDOW_UPDATE]);
}
