//! However the input is cut into slices, the events are the same.

use super::wire::{
    OK, TARGET, block, connect, data, end, frame, goaway, headers, hello, reset, settings, window,
};
use crate::frame::{flag, kind};
use crate::{Connection, ConnectionError, Event, Settings};

/// An event with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Bytes(u32, Vec<u8>),
    Other(Event),
}

/// What the input makes a connection report, with the parts of DATA joined; and what it has queued.
fn seen(mut connection: Connection, slices: &[&[u8]]) -> (Vec<Seen>, Option<ConnectionError>, Vec<u8>) {
    let mut all = Vec::new();
    for slice in slices {
        let mut at = 0;
        loop {
            match connection.receive(slice, &mut at) {
                Ok(None) => break,
                Ok(Some(Event::Data { stream, range })) => match all.last_mut() {
                    Some(Seen::Bytes(last, bytes)) if *last == stream => {
                        bytes.extend_from_slice(&slice[range])
                    }
                    _ => all.push(Seen::Bytes(stream, slice[range].to_vec())),
                },
                Ok(Some(other)) => all.push(Seen::Other(other)),
                Err(error) => return (all, Some(error), connection.output().to_vec()),
            }
        }
    }
    (all, None, connection.output().to_vec())
}

pub(super) fn server_script() -> Vec<u8> {
    let pieces = block(&TARGET);
    [
        hello(true),
        connect(1),
        data(1, b"hello"),
        frame(kind::DATA, flag::PADDED, 1, b"\x04padded\0\0\0\0"),
        frame(
            kind::HEADERS,
            flag::PADDED | flag::PRIORITY,
            3,
            &[&[1, 0, 0, 0, 0, 1], &pieces[..7], &[0]].concat(),
        ),
        frame(kind::CONTINUATION, 0, 3, &pieces[7..9]),
        frame(kind::CONTINUATION, flag::END_HEADERS, 3, &pieces[9..]),
        frame(0x77, 1, 3, b"unknown"),
        settings(&[(4, 100), (5, 20_000)]),
        frame(kind::PING, 0, 0, b"12345678"),
        window(3, 1000),
        headers(5, &[(":method", "GET")], false),
        data(5, b"late"),
        frame(kind::DATA, flag::END_STREAM, 3, b"end"),
        reset(3, 8),
        frame(kind::PRIORITY, 0, 9, &[0; 5]),
        end(1),
        connect(7),
        reset(7, 2),
        frame(kind::DATA, flag::PADDED | flag::END_STREAM, 7, b"\x00x"),
        goaway(0, 0),
        data(9, b"violation"),
    ]
    .concat()
}

pub(super) fn asking_client() -> Connection {
    let mut client = Connection::client(Settings::default());
    for _ in 0..3 {
        client.send_connect("10.0.0.1:80", &[("baggage", "x")]).unwrap();
    }
    client
}

pub(super) fn client_script() -> Vec<u8> {
    [
        hello(false),
        headers(3, &[(":status", "103")], false),
        headers(1, &OK, false),
        data(1, &[7; 300]),
        headers(3, &[(":status", "503"), ("baggage", "y")], true),
        headers(1, &[("a", "b")], true),
        goaway(3, 2),
        window(1, 5),
        settings(&[(4, 5), (1, 0)]),
        headers(4, &OK, false),
    ]
    .concat()
}

#[test]
fn split_points_do_not_change_events() {
    let scripts =
        [(Connection::server(Settings::default()), server_script()), (asking_client(), client_script())];
    for (start, script) in scripts {
        let whole = seen(start.clone(), &[&script]);
        assert!(whole.1.is_some() && whole.0.len() > 8, "{:?}", whole.0);
        for at in 0..=script.len() {
            let (first, second) = script.split_at(at);
            assert_eq!(seen(start.clone(), &[first, second]), whole, "{at}");
        }
        for size in 1..20 {
            let slices: Vec<&[u8]> = script.chunks(size).collect();
            assert_eq!(seen(start.clone(), &slices), whole, "{size}");
        }
    }
}
