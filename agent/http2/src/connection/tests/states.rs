//! The states of streams (RFC 9113 §5.1), their ids and their number.

use super::wire::{
    OK, client, connect, data, end, feed, frame, headers, kinds, output, reset, server, server_with, serving,
    settings, tunnelling, window,
};
use crate::frame::kind;
use crate::{Code, Connection, Event, ResetCause, SendError, Settings, Violation};

/// What a frame in a state does: nothing, a reset of stream 1, or the end of the connection.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Ignored,
    Reported,
    Reset(Code),
    Ended(Code),
}

/// A name, a connection whose stream 1 is in the state, and what each kind of frame does there.
type State = (&'static str, fn() -> Connection, [Outcome; 5]);

fn outcome(connection: &mut Connection, input: &[u8]) -> Outcome {
    match feed(connection, input) {
        Err(error) => Outcome::Ended(error.code),
        Ok(events) => match output(connection).iter().find(|frame| frame.kind == kind::RST_STREAM) {
            Some(reset) => Outcome::Reset(Code(reset.number())),
            None if events.is_empty() => Outcome::Ignored,
            None => Outcome::Reported,
        },
    }
}

/// A server on which both ends closed stream 1 with END_STREAM.
fn ended() -> Connection {
    let mut server = serving(1);
    feed(&mut server, &end(1)).unwrap();
    server.end_stream(1).unwrap();
    output(&mut server);
    server
}

fn half_closed_by_peer() -> Connection {
    let mut server = serving(1);
    feed(&mut server, &end(1)).unwrap();
    server
}

fn half_closed_by_us() -> Connection {
    let mut server = serving(1);
    server.end_stream(1).unwrap();
    output(&mut server);
    server
}

fn reset_by_peer() -> Connection {
    let mut server = serving(1);
    feed(&mut server, &reset(1, 8)).unwrap();
    server
}

fn reset_by_us() -> Connection {
    let mut server = serving(1);
    server.reset(1, Code::CANCEL);
    output(&mut server);
    server
}

#[test]
fn section_5_1_frames_in_each_state() {
    use Outcome::{Ended, Ignored, Reported, Reset};
    let closed = Code::STREAM_CLOSED;
    let trailers = || headers(1, &[("a", "b")], true);
    let priority = || frame(kind::PRIORITY, 0, 1, &[0; 5]);
    let states: [State; 6] = [
        ("open", || serving(1), [Reported, Reported, Reported, Ignored, Ignored]),
        (
            "half-closed (remote)",
            half_closed_by_peer,
            [Reset(closed), Reset(closed), Reported, Ignored, Ignored],
        ),
        ("half-closed (local)", half_closed_by_us, [Reported, Reported, Reported, Ignored, Ignored]),
        ("closed", ended, [Ended(closed), Ended(closed), Ignored, Ignored, Ignored]),
        ("closed by RST_STREAM", reset_by_peer, [Reset(closed), Reset(closed), Ignored, Ignored, Ignored]),
        ("reset by us", reset_by_us, [Ignored, Ignored, Ignored, Ignored, Ignored]),
    ];
    for (name, state, expected) in states {
        let frames = [data(1, b"x"), trailers(), reset(1, 8), window(1, 10), priority()];
        for (index, (input, expected)) in frames.into_iter().zip(expected).enumerate() {
            assert_eq!(outcome(&mut state(), &input), expected, "{name}: {index}");
        }
    }
}

#[test]
fn section_5_1_frames_on_a_stream_that_awaits_its_head() {
    let awaiting = || {
        let mut client = client();
        client.send_connect("a:1", &[]).unwrap();
        output(&mut client);
        client
    };
    assert_eq!(outcome(&mut awaiting(), &data(1, b"x")), Outcome::Reset(Code::PROTOCOL_ERROR));
    assert_eq!(outcome(&mut awaiting(), &window(1, 10)), Outcome::Ignored);
    let events = feed(&mut awaiting(), &reset(1, 7)).unwrap();
    assert_eq!(events, [Event::Reset { stream: 1, code: Code::REFUSED_STREAM, cause: ResetCause::Peer }]);
    // DATA may follow a request at once.
    let mut server = server();
    let events = feed(&mut server, &[connect(1), data(1, b"early")].concat()).unwrap();
    assert!(matches!(events[..], [Event::Request { .. }, Event::Data { .. }]));
}

#[test]
fn section_5_1_1_stream_ids_are_odd_and_increase() {
    assert_eq!(feed(&mut server(), &connect(2)).unwrap_err().reason, Violation::IdleStream);
    let mut server = server();
    feed(&mut server, &connect(5)).unwrap();
    assert_eq!(feed(&mut server, &connect(3)).unwrap_err().reason, Violation::StreamOrder);
    for stream in [2, 1, 3] {
        assert_eq!(
            feed(&mut client(), &headers(stream, &OK, false)).unwrap_err().reason,
            Violation::IdleStream
        );
    }
    let mut client = client();
    assert_eq!([(); 3].map(|()| client.send_connect("a:1", &[])), [Ok(1), Ok(3), Ok(5)]);
    assert_eq!(feed(&mut client, &headers(7, &OK, false)).unwrap_err().reason, Violation::IdleStream);
}

#[test]
fn a_client_that_has_used_all_ids_is_going_away() {
    let mut parts = client().into_parts();
    parts.next_stream = (1 << 31) - 1;
    let mut client = Connection::from_parts(parts);
    assert_eq!(client.send_connect("a:1", &[]), Ok((1 << 31) - 1));
    assert_eq!(client.send_connect("a:1", &[]), Err(SendError::GoingAway));
    let mut server = server();
    feed(&mut server, &connect((1 << 31) - 1)).unwrap();
    assert_eq!(feed(&mut server, &connect(1)).unwrap_err().reason, Violation::StreamOrder);
}

#[test]
fn section_5_1_2_more_streams_than_allowed_are_refused() {
    let mut server = server_with(Settings { max_concurrent_streams: 2, ..Settings::default() });
    let events = feed(&mut server, &[connect(1), connect(3), connect(5)].concat()).unwrap();
    assert_eq!(events.len(), 2);
    let sent = output(&mut server);
    assert_eq!((sent[0].kind, sent[0].stream, sent[0].number()), (kind::RST_STREAM, 5, 7));
    server.send_response(1, 503, &[], true).unwrap();
    assert_eq!(feed(&mut server, &connect(7)).unwrap(), [], "half-closed streams count");
    feed(&mut server, &end(1)).unwrap();
    assert_eq!(feed(&mut server, &connect(9)).unwrap().len(), 1);
    // The client's side of the same limit.
    let mut client = client();
    feed(&mut client, &settings(&[(3, 1)])).unwrap();
    client.send_connect("a:1", &[]).unwrap();
    assert_eq!(client.send_connect("a:1", &[]), Err(SendError::TooManyStreams));
    feed(&mut client, &reset(1, 8)).unwrap();
    assert_eq!(client.send_connect("a:1", &[]), Ok(3));
}

#[test]
fn both_halves_end_on_their_own() {
    let mut client = tunnelling(1);
    assert_eq!(feed(&mut client, &end(1)).unwrap(), [Event::End { stream: 1 }]);
    assert_eq!(client.active_streams(), 1);
    assert_eq!(client.reserve_data(1, 5), 5);
    client.data_header(1, 5, true).unwrap();
    assert_eq!(client.active_streams(), 0);
    assert_eq!((client.end_stream(1), client.reserve_data(1, 5)), (Err(SendError::Closed), 0));
    client.reset(1, Code::CANCEL);
    assert!(client.output().is_empty(), "it has ended");
}

#[test]
fn a_reset_of_either_end_is_the_end() {
    let mut client = tunnelling(2);
    client.reset(1, Code::CONNECT_ERROR);
    client.reset(1, Code::CANCEL);
    let sent = output(&mut client);
    assert_eq!((sent.len(), sent[0].kind, sent[0].number()), (1, kind::RST_STREAM, 10));
    assert_eq!(client.data_header(1, 1, false), Err(SendError::Closed));
    let events = feed(&mut client, &reset(3, 10)).unwrap();
    assert_eq!(events, [Event::Reset { stream: 3, code: Code::CONNECT_ERROR, cause: ResetCause::Peer }]);
    assert_eq!(client.active_streams(), 0);
    client.grant(3, 10);
    assert!(kinds(&mut client).is_empty());
}

#[test]
fn data_of_a_stream_that_was_reset_gives_its_credit_back_to_the_connection() {
    let mut server = serving(1);
    server.reset(1, Code::CANCEL);
    output(&mut server);
    for _ in 0..256 {
        feed(&mut server, &data(1, &[0; 16_384])).unwrap();
    }
    let sent = output(&mut server);
    assert_eq!(sent.iter().map(|frame| (frame.stream, frame.number())).collect::<Vec<_>>(), [(0, 4 << 20)]);
}

#[test]
fn closed_streams_are_remembered_in_bounded_memory() {
    let mut server = serving(1);
    feed(&mut server, &end(1)).unwrap();
    server.end_stream(1).unwrap();
    for count in 1..=1024 {
        let stream = 2 * count + 1;
        feed(&mut server, &[connect(stream), reset(stream, 8)].concat()).unwrap();
        server.tick(crate::budget::FULL_RETURN);
    }
    let parts = server.into_parts();
    assert_eq!((parts.closed.len(), parts.streams.len()), (1024, 0));
    let mut server = Connection::from_parts(parts);
    assert_eq!(feed(&mut server, &data(1, b"x")), Ok(vec![]), "forgotten: taken for late");
}
