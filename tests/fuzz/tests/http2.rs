//! Arbitrary bytes for the HTTP/2 connection of a tunnel, as a server and as a client. Nothing may panic, no slice boundary
//! may change what is reported or answered, and a connection that was taken apart goes on as before.

use isthmus_fuzz::Choices;
use isthmus_http2::{Code, Connection, ConnectionError, Event, Settings, StreamId};

/// An event with its bytes.
#[derive(Debug, PartialEq)]
enum Seen {
    Bytes(StreamId, Vec<u8>),
    Other(Event),
}

/// What an input did: events with the parts of DATA joined, the end, and the output.
type Outcome = (Vec<Seen>, Option<ConnectionError>, Vec<u8>);

fn settings() -> Settings {
    Settings {
        stream_window: 70_000,
        connection_window: 70_000,
        max_concurrent_streams: 5,
        ..Settings::default()
    }
}

fn client() -> Connection {
    let mut client = Connection::client(settings());
    for _ in 0..3 {
        let _ = client.send_connect("10.0.0.1:80", &[("baggage", "a=b")]);
    }
    client
}

/// Hands the input over in slices of these lengths, one after the other, and answers events in a way that depends on them
/// only. With `moving` the connection is taken apart between any two slices.
fn run(mut connection: Connection, input: &[u8], lengths: &[usize], moving: bool) -> Outcome {
    let mut seen = Vec::new();
    let (mut rest, mut turn) = (input, 0);
    while !rest.is_empty() {
        let (slice, behind) = rest.split_at(lengths[turn % lengths.len()].clamp(1, rest.len()));
        (rest, turn) = (behind, turn + 1);
        let mut at = 0;
        loop {
            match connection.receive(slice, &mut at) {
                Ok(None) => break,
                Ok(Some(Event::Data { stream, range })) => {
                    let bytes = &slice[range];
                    match seen.last_mut() {
                        Some(Seen::Bytes(last, all)) if *last == stream => all.extend_from_slice(bytes),
                        _ => seen.push(Seen::Bytes(stream, bytes.to_vec())),
                    }
                }
                Ok(Some(event)) => {
                    answer(&mut connection, &event);
                    seen.push(Seen::Other(event));
                }
                Err(error) => return (seen, Some(error), connection.output().to_vec()),
            }
        }
        if moving {
            let parts = connection.into_parts();
            connection = Connection::from_parts(parts.clone());
            assert_eq!(connection.clone().into_parts(), parts);
        }
    }
    (seen, None, connection.output().to_vec())
}

fn answer(connection: &mut Connection, event: &Event) {
    match event {
        Event::Request { stream, head } if !head.is_connect() => {
            let _ = connection.send_response(*stream, 405, &[], true);
        }
        Event::Request { stream, .. } if stream % 8 == 7 => connection.reset(*stream, Code::REFUSED_STREAM),
        Event::Request { stream, .. } => {
            let _ = connection.send_response(*stream, 200, &[], false);
        }
        Event::Response { stream, .. } | Event::Window { stream } => {
            let part = connection.reserve_data(*stream, 100_000);
            let header = connection.data_header(*stream, part, false);
            assert!(header.is_ok() || part == 0);
        }
        Event::End { stream } | Event::Trailers { stream, .. } => {
            connection.grant(*stream, u32::MAX);
            let _ = connection.end_stream(*stream);
        }
        _ => {}
    }
}

fn frame(kind: u8, flags: u8, stream: StreamId, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field block that is mostly valid: indexed fields, literals of each kind, and a little of anything.
fn block(choices: &mut Choices<'_>, server: bool) -> Vec<u8> {
    let mut block = if server {
        [&[0x02, 7][..], b"CONNECT", &[0x41, 3], b"a:1"].concat()
    } else {
        vec![if choices.rarely(4) { 0x89 } else { 0x88 }]
    };
    for _ in 0..choices.byte() % 3 {
        match choices.byte() % 4 {
            0 => block.extend_from_slice(&[0x40, 1, b'a', 1, choices.byte()]),
            1 => block.push(choices.byte()),
            2 => block.extend_from_slice(&[0x00, 0x81, 0x1f, 0]),
            _ => block.extend_from_slice(choices.bytes(6)),
        }
    }
    block
}

/// A connection's input that is mostly valid frames.
fn script(choices: &mut Choices<'_>, server: bool) -> Vec<u8> {
    let mut input = if server { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec() } else { Vec::new() };
    input.extend(frame(4, 0, 0, &[]));
    let mut next = 1;
    if !choices.rarely(4) {
        input.extend(frame(1, 4, 1, &block(choices, server)));
        next = 3;
    }
    while !choices.is_over() {
        let known = (u32::from(choices.byte() % 4) * 2 + 1).min(next.max(3) - 2);
        let stream = if choices.rarely(24) { choices.number() } else { known };
        input.extend(match choices.byte() % 12 {
            0 | 1 => {
                let stream = if server { next } else { stream };
                next += 2;
                let end = u8::from(choices.rarely(6));
                let block = block(choices, server);
                let cut = usize::from(choices.byte()) % (block.len() + 1);
                if choices.rarely(4) {
                    [frame(1, end, stream, &block[..cut]), frame(9, 4, stream, &block[cut..])].concat()
                } else {
                    frame(1, 4 | end, stream, &block)
                }
            }
            2..=4 => {
                let flags = [0, 0, 1, 8, 9][usize::from(choices.byte() % 5)];
                frame(0, flags, stream, choices.bytes(20))
            }
            5 => frame(8, 0, stream, &choices.number().to_be_bytes()),
            6 => frame(8, 0, 0, &choices.number().to_be_bytes()),
            7 => frame(3, 0, stream, &[0, 0, 0, 8]),
            8 => {
                let id = [0, choices.byte() % 7];
                frame(4, 0, 0, &[&id[..], &choices.number().to_be_bytes()].concat())
            }
            9 => frame(4, 1, 0, &[]),
            10 => frame(6, choices.byte() % 2, 0, &[7; 8]),
            _ => frame(choices.byte() % 14, choices.byte(), stream % 8, choices.bytes(12)),
        });
    }
    input
}

fn check(connection: &Connection, input: &[u8], lengths: &[usize]) -> Outcome {
    let whole = run(connection.clone(), input, &[usize::MAX], false);
    assert_eq!(run(connection.clone(), input, lengths, true), whole, "{lengths:?}");
    assert_eq!(run(connection.clone(), input, &[1], false), whole);
    whole
}

#[test]
fn arbitrary_bytes_do_not_panic() {
    bolero::check!().with_max_len(512).for_each(|bytes: &[u8]| {
        check(&Connection::server(settings()), bytes, &[3]);
        check(&client(), bytes, &[5, 2]);
        let hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[]), bytes].concat();
        check(&Connection::server(settings()), &hello, &[7]);
        check(&Connection::server(settings()), &[&hello[..33], &frame(1, 4, 1, bytes)].concat(), &[11]);
    });
}

#[test]
fn split_points_do_not_change_events() {
    bolero::check!().with_max_len(400).for_each(|bytes: &[u8]| {
        let mut choices = Choices::new(bytes);
        let lengths = [choices.byte(), choices.byte(), choices.byte()].map(usize::from);
        let server = choices.rarely(2);
        let input = script(&mut choices, server);
        let connection = if server { Connection::server(settings()) } else { client() };
        check(&connection, &input, &lengths);
    });
}

/// The harness above would find little if its scripts always ended at once.
#[test]
fn generated_scripts_reach_every_kind_of_event() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut requests, mut responses, mut bytes, mut ends, mut resets, mut clean) = (0, 0, 0, 0, 0, 0);
    for count in 0..2_000 {
        let choices: Vec<u8> = (0..rng.usize(1..100)).map(|_| rng.u8(..)).collect();
        let server = count % 2 == 0;
        let input = script(&mut Choices::new(&choices), server);
        let connection = if server { Connection::server(settings()) } else { client() };
        let (seen, error, _) = run(connection, &input, &[50], false);
        clean += u32::from(error.is_none());
        for one in seen {
            match one {
                Seen::Bytes(..) => bytes += 1,
                Seen::Other(Event::Request { .. }) => requests += 1,
                Seen::Other(Event::Response { .. }) => responses += 1,
                Seen::Other(Event::End { .. }) => ends += 1,
                Seen::Other(Event::Reset { .. }) => resets += 1,
                Seen::Other(_) => {}
            }
        }
    }
    for (name, count) in [
        ("requests", requests),
        ("responses", responses),
        ("bytes", bytes),
        ("ends", ends),
        ("resets", resets),
        ("clean", clean),
    ] {
        assert!(count >= 20, "{name}: {count}");
    }
}
