//! The preface, frame headers, SETTINGS, PING and GOAWAY (RFC 9113 §3.4, §4, §6.5, §6.7, §6.8).

use super::wire::{
    client, connect, data, end, feed, frame, goaway, hello, kinds, output, server, serving, settings,
    tunnelling,
};
use crate::frame::{MAX_U31, PREFACE, flag, kind};
use crate::{Code, Connection, Event, ResetCause, SendError, Settings, Violation};

/// Bytes on a server that has the preface and settings, and the violation that they are.
type Case = (&'static str, Vec<u8>, Violation, Code);

#[test]
fn section_3_4_preface() {
    let mut client = Connection::client(Settings::default());
    assert!(client.output().starts_with(PREFACE));
    let frames = output(&mut client);
    assert_eq!(
        frames.iter().map(|frame| frame.kind).collect::<Vec<_>>(),
        [kind::SETTINGS, kind::WINDOW_UPDATE]
    );
    assert_eq!(frames[1].number(), 16 * 1024 * 1024 - 65_535);
    let mut expected = Vec::new();
    for (id, value) in [(1_u16, 0_u32), (2, 0), (4, 256 * 1024), (5, 16_384), (6, 65_536)] {
        expected.extend_from_slice(&id.to_be_bytes());
        expected.extend_from_slice(&value.to_be_bytes());
    }
    assert_eq!(frames[0].payload, expected);

    let mut server = Connection::server(Settings::default());
    assert_eq!(kinds(&mut server), [kind::SETTINGS, kind::WINDOW_UPDATE], "without waiting for the client");
    for wrong in [&b"G"[..], b"PRI * HTTP/1", b"\x16\x03\x01"] {
        let mut server = Connection::server(Settings::default());
        let error = feed(&mut server, wrong).unwrap_err();
        assert_eq!((error.code, error.reason), (Code::PROTOCOL_ERROR, Violation::Preface));
        assert_eq!(kinds(&mut server).last(), Some(&kind::GOAWAY));
        assert_eq!(feed(&mut server, b"x"), Err(error), "and stays so");
    }
    let mut server = Connection::server(Settings::default());
    let early = [&PREFACE[..], &frame(kind::PING, 0, 0, &[0; 8])].concat();
    assert_eq!(feed(&mut server, &early).unwrap_err().reason, Violation::FirstFrame);
    let mut client = Connection::client(Settings::default());
    assert_eq!(
        feed(&mut client, &frame(kind::SETTINGS, 1, 0, &[])).unwrap_err().reason,
        Violation::FirstFrame
    );
}

#[test]
fn sections_4_1_to_6_5_frames_that_end_the_connection() {
    use Violation as V;
    let (size, protocol, flow) = (Code::FRAME_SIZE_ERROR, Code::PROTOCOL_ERROR, Code::FLOW_CONTROL_ERROR);
    assert_end(vec![
        ("4.2 too large", frame(kind::DATA, 0, 1, &[0; 16_385]), V::FrameTooLarge, size),
        ("6.1 DATA on 0", data(0, b"x"), V::FrameStream, protocol),
        ("6.1 DATA on idle", data(1, b"x"), V::IdleStream, protocol),
        ("6.1 padded without length", frame(kind::DATA, flag::PADDED, 1, &[]), V::FrameLength, size),
        ("6.2 HEADERS on 0", frame(kind::HEADERS, 4, 0, &[]), V::FrameStream, protocol),
        ("6.2 padding", frame(kind::HEADERS, 4 | flag::PADDED, 1, &[2, 0]), V::Padding, protocol),
        ("6.2 priority", frame(kind::HEADERS, 4 | flag::PRIORITY, 1, &[0; 4]), V::FrameLength, size),
        ("6.3 PRIORITY on 0", frame(kind::PRIORITY, 0, 0, &[0; 5]), V::FrameStream, protocol),
        ("6.3 PRIORITY length", frame(kind::PRIORITY, 0, 1, &[0; 4]), V::FrameLength, size),
        ("6.4 RST_STREAM on 0", frame(kind::RST_STREAM, 0, 0, &[0; 4]), V::FrameStream, protocol),
        ("6.4 RST_STREAM on idle", frame(kind::RST_STREAM, 0, 1, &[0; 4]), V::IdleStream, protocol),
        ("6.4 RST_STREAM length", frame(kind::RST_STREAM, 0, 1, &[0; 3]), V::FrameLength, size),
        ("6.5 SETTINGS on 1", frame(kind::SETTINGS, 0, 1, &[]), V::FrameStream, protocol),
        ("6.5 SETTINGS length", frame(kind::SETTINGS, 0, 0, &[0; 5]), V::FrameLength, size),
        ("6.5 SETTINGS ACK length", frame(kind::SETTINGS, 1, 0, &[0; 6]), V::FrameLength, size),
        ("6.5.2 ENABLE_PUSH", settings(&[(2, 2)]), V::Setting(2), protocol),
        ("6.5.2 INITIAL_WINDOW_SIZE", settings(&[(4, 1 << 31)]), V::InitialWindow, flow),
        ("6.5.2 MAX_FRAME_SIZE low", settings(&[(5, 16_383)]), V::Setting(5), protocol),
        ("6.5.2 MAX_FRAME_SIZE high", settings(&[(5, 1 << 24)]), V::Setting(5), protocol),
    ]);
}

#[test]
fn sections_6_6_to_6_10_frames_that_end_the_connection() {
    use Violation as V;
    let (size, protocol) = (Code::FRAME_SIZE_ERROR, Code::PROTOCOL_ERROR);
    assert_end(vec![
        ("6.6 PUSH_PROMISE", frame(kind::PUSH_PROMISE, 4, 1, &[0; 4]), V::Push, protocol),
        ("6.7 PING on 1", frame(kind::PING, 0, 1, &[0; 8]), V::FrameStream, protocol),
        ("6.7 PING length", frame(kind::PING, 0, 0, &[0; 7]), V::FrameLength, size),
        ("6.8 GOAWAY on 1", frame(kind::GOAWAY, 0, 1, &[0; 8]), V::FrameStream, protocol),
        ("6.8 GOAWAY length", frame(kind::GOAWAY, 0, 0, &[0; 7]), V::FrameLength, size),
        ("6.9 WINDOW_UPDATE length", frame(kind::WINDOW_UPDATE, 0, 0, &[0; 5]), V::FrameLength, size),
        ("6.9 WINDOW_UPDATE of 0", frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), V::ZeroIncrement, protocol),
        (
            "6.9 WINDOW_UPDATE on idle",
            frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
            V::IdleStream,
            protocol,
        ),
        ("6.10 CONTINUATION alone", frame(kind::CONTINUATION, 4, 1, &[]), V::Continuation, protocol),
        (
            "6.10 interrupted",
            [frame(kind::HEADERS, 0, 1, &[]), frame(kind::PING, 0, 0, &[0; 8])].concat(),
            V::Continuation,
            protocol,
        ),
        (
            "6.10 another stream",
            [frame(kind::HEADERS, 0, 1, &[]), frame(kind::CONTINUATION, 4, 3, &[])].concat(),
            V::Continuation,
            protocol,
        ),
        (
            "4.3 compression",
            frame(kind::HEADERS, 4, 1, &[0x80]),
            V::Hpack(crate::HpackError::Index(0)),
            Code(9),
        ),
    ]);
}

/// Each input ends a connection of its own, for this reason and with this code in the GOAWAY.
fn assert_end(cases: Vec<Case>) {
    for (name, input, reason, code) in cases {
        let mut server = server();
        let error = feed(&mut server, &input).unwrap_err();
        assert_eq!((error.reason, error.code), (reason, code), "{name}");
        let sent = output(&mut server);
        let goaway = sent.last().unwrap();
        assert_eq!((goaway.kind, &goaway.payload[4..8]), (kind::GOAWAY, &code.0.to_be_bytes()[..]), "{name}");
    }
}

#[test]
fn section_4_1_reserved_bits_unknown_frames_flags_and_settings_are_ignored() {
    let mut server = server();
    let mut input = frame(0xfa, 0xff, 7, b"grease");
    input.extend(settings(&[(0x0a0a, 7), (8, 1)]));
    input.extend(frame(kind::PING, 0xfe, 1 << 31, &[7; 8]));
    assert_eq!(feed(&mut server, &input), Ok(vec![Event::PeerSettings]));
    let sent = output(&mut server);
    assert_eq!((sent[0].kind, sent[0].flags), (kind::SETTINGS, flag::ACK));
    assert_eq!((sent[1].kind, sent[1].flags, &sent[1].payload[..]), (kind::PING, flag::ACK, &[7; 8][..]));
}

#[test]
fn section_6_5_settings_are_applied_acknowledged_and_reported() {
    let mut client = Connection::client(Settings { initial_send_streams: 1, ..Settings::default() });
    client.send_connect("a:1", &[]).unwrap();
    assert_eq!(client.send_connect("a:1", &[]), Err(SendError::TooManyStreams));
    output(&mut client);
    let all = [(1, 0), (3, 2), (4, 1000), (5, 20_000), (6, 50)];
    assert_eq!(feed(&mut client, &settings(&all)), Ok(vec![Event::PeerSettings]));
    assert_eq!(kinds(&mut client), [kind::SETTINGS]);
    let peer = client.peer_settings();
    assert_eq!(
        (peer.max_concurrent_streams, peer.max_frame_size, peer.max_header_list_size),
        (2, 20_000, 50)
    );
    assert_eq!(client.send_credit(1), 1000);
    assert_eq!(client.send_connect("a:1", &[]), Err(SendError::HeaderListSize));
    feed(&mut client, &settings(&[(6, 1000)])).unwrap();
    assert_eq!(client.send_connect("a:1", &[]), Ok(3));
    let sent = output(&mut client);
    assert_eq!(
        sent.last().unwrap().payload[0],
        0x20,
        "a lower HEADER_TABLE_SIZE is answered with a size update"
    );
    assert_eq!(client.send_connect("a:1", &[]), Err(SendError::TooManyStreams));
    // A server must not enable push.
    assert_eq!(feed(&mut client, &settings(&[(2, 1)])).unwrap_err().reason, Violation::Setting(2));
    let mut server = server();
    assert!(feed(&mut server, &settings(&[(2, 1)])).is_ok(), "a client may");
}

#[test]
fn section_6_5_3_the_acknowledgement_is_reported_once() {
    let mut server = Connection::server(Settings::default());
    let events = feed(&mut server, &hello(true)).unwrap();
    assert_eq!(events, [Event::PeerSettings, Event::SettingsAcknowledged]);
    assert_eq!(feed(&mut server, &frame(kind::SETTINGS, flag::ACK, 0, &[])), Ok(vec![]));
}

#[test]
fn section_6_7_answers_to_pings_are_reported() {
    let mut client = client();
    client.ping(*b"12345678");
    let sent = output(&mut client);
    assert_eq!((sent[0].kind, sent[0].flags, &sent[0].payload[..]), (kind::PING, 0, &b"12345678"[..]));
    let events = feed(&mut client, &frame(kind::PING, flag::ACK, 0, b"12345678")).unwrap();
    assert_eq!(events, [Event::Pong { payload: *b"12345678" }]);
    assert!(client.output().is_empty());
}

#[test]
fn section_6_8_a_goaway_fails_later_streams_and_new_ones() {
    let mut client = tunnelling(3);
    let mut input = goaway(3, 0);
    input[2] = 10;
    input.extend_from_slice(b"by");
    let events = feed(&mut client, &input).unwrap();
    let reset = Event::Reset { stream: 5, code: Code::REFUSED_STREAM, cause: ResetCause::GoAway };
    assert_eq!(
        events,
        [Event::GoAway { last_stream: 3, code: Code::NO_ERROR, debug: b"by".to_vec() }, reset]
    );
    assert_eq!(client.send_connect("a:1", &[]), Err(SendError::GoingAway));
    assert_eq!(feed(&mut client, &data(1, b"x")).unwrap(), [Event::Data { stream: 1, range: 9..10 }]);
    assert!(feed(&mut client, &goaway(1, 0)).is_ok());
    assert!(!client.is_finished());
    client.grant(1, 1);
    for input in [end(1), goaway(1, 0)] {
        feed(&mut client, &input).unwrap();
    }
    client.end_stream(1).unwrap();
    assert!(client.is_finished());
    assert_eq!(feed(&mut client, &goaway(3, 0)).unwrap_err().reason, Violation::GoAwayIncreased);
}

#[test]
fn section_6_8_a_server_drains_without_losing_requests_in_flight() {
    let mut server = serving(1);
    server.drain();
    server.drain();
    let sent = output(&mut server);
    assert_eq!(sent.len(), 2);
    assert_eq!((sent[0].kind, sent[0].number()), (kind::GOAWAY, MAX_U31));
    assert_eq!(sent[1].kind, kind::PING);
    let events = feed(&mut server, &connect(3)).unwrap();
    assert!(matches!(events[..], [Event::Request { stream: 3, .. }]), "was in flight");
    feed(&mut server, &frame(kind::PING, flag::ACK, 0, &sent[1].payload)).unwrap();
    let last = output(&mut server);
    assert_eq!((last[0].kind, last[0].number()), (kind::GOAWAY, 3));
    assert_eq!(feed(&mut server, &[connect(5), data(5, b"x"), end(5)].concat()), Ok(vec![]), "ignored");
    assert!(!server.is_finished());
    feed(&mut server, &[end(1), end(3)].concat()).unwrap();
    server.send_response(3, 503, &[], true).unwrap();
    assert!(!server.is_finished());
    server.end_stream(1).unwrap();
    assert!(server.is_finished());
}

#[test]
fn a_client_drains_with_its_last_stream() {
    let mut client = tunnelling(1);
    client.drain();
    let sent = output(&mut client);
    assert_eq!((sent[0].kind, sent[0].number()), (kind::GOAWAY, 0));
    assert_eq!(client.send_connect("a:1", &[]), Err(SendError::GoingAway));
    assert!(!client.is_finished());
    client.reset(1, Code::CANCEL);
    assert!(client.is_finished());
}
