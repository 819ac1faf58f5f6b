//! The published attacks, each with the budget that ends it; and honest loads, which none may end.

use super::wire::{
    OK, TARGET, block, client, connect, data, feed, frame, goaway, headers, output, reset, server, serving,
    settings, tunnelling, window,
};
use crate::budget::{Abuse, FULL_RETURN};
use crate::frame::{flag, kind};
use crate::{Code, Connection, Event, Settings, Violation};

/// A name, and what opens a stream and makes us reset it.
type Provocation = (&'static str, fn(u32) -> Vec<u8>);

/// Feeds inputs until the connection ends; returns how many it took, and why it ended.
fn until_cut_off(connection: &mut Connection, input: impl Fn(u32) -> Vec<u8>) -> (u32, Violation) {
    for count in 0..300_000 {
        let fed = feed(connection, &input(count));
        // The peer reads what it provokes, so that only the budget can end this.
        let written = connection.output().len();
        if let Err(error) = fed {
            assert_eq!(error.code, Code::ENHANCE_YOUR_CALM);
            let sent = output(connection);
            let goaway = sent.last().unwrap();
            assert_eq!((goaway.kind, goaway.payload[7]), (kind::GOAWAY, 11));
            return (count, error.reason);
        }
        connection.consumed(written);
    }
    panic!("never cut off");
}

fn assert_cut_off(mut connection: Connection, kind: Abuse, input: impl Fn(u32) -> Vec<u8>) {
    let (count, reason) = until_cut_off(&mut connection, input);
    assert_eq!(reason, Violation::Abuse(kind));
    assert_eq!(count, kind.limit(Settings::default().max_concurrent_streams));
}

#[test]
fn rapid_reset_cve_2023_44487() {
    assert_cut_off(server(), Abuse::RapidReset, |count| {
        [connect(2 * count + 1), reset(2 * count + 1, 8)].concat()
    });
}

#[test]
fn clients_that_give_up_after_a_time_are_no_rapid_reset() {
    let mut server = server();
    for count in 0..2_000 {
        feed(&mut server, &connect(2 * count + 1)).unwrap();
        server.tick(FULL_RETURN / 50);
        feed(&mut server, &reset(2 * count + 1, 8)).unwrap();
    }
    assert_eq!(server.into_parts().budgets.spent[0], 0);
}

#[test]
fn answered_streams_that_are_reset_before_they_carried_data_have_a_budget() {
    let mut server = server();
    let limit = Abuse::BarrenReset.limit(200);
    let answered_and_reset = |server: &mut Connection, stream: u32, with_data: bool| {
        feed(server, &connect(stream))?;
        server.send_response(stream, 200, &[], false).unwrap();
        if with_data {
            feed(server, &data(stream, b"x"))?;
        }
        feed(server, &reset(stream, 8))?;
        server.consumed(server.output().len());
        Ok::<_, crate::ConnectionError>(())
    };
    for count in 0..2 * limit {
        answered_and_reset(&mut server, 2 * count + 1, true).unwrap();
    }
    assert_eq!(server.take_barren_resets(), 0);
    let first = 4 * limit + 1;
    for count in 0..limit {
        answered_and_reset(&mut server, first + 2 * count, false).unwrap();
    }
    assert_eq!(server.take_barren_resets(), limit);
    // A thousand a second come back: what the paced attack does in one second is too much for it.
    server.tick(FULL_RETURN / 10);
    let next = first + 2 * limit;
    let spent =
        (0..6_400).position(|count| answered_and_reset(&mut server, next + 2 * count, false).is_err());
    assert_eq!(spent, Some(1_000));
    assert_eq!(server.error().map(|error| error.code), Some(Code::ENHANCE_YOUR_CALM));
}

#[test]
fn streams_that_the_caller_still_works_for_keep_their_slots() {
    let mut server = server();
    server.set_held_streams(399);
    assert!(matches!(feed(&mut server, &connect(1)).unwrap()[..], [Event::Request { stream: 1, .. }]));
    server.set_held_streams(400);
    feed(&mut server, &connect(3)).unwrap();
    let sent = output(&mut server);
    let refused = sent.last().unwrap();
    assert_eq!((refused.kind, refused.stream, refused.number()), (kind::RST_STREAM, 3, 7));
}

#[test]
fn made_you_reset_cve_2025_8671() {
    let provocations: [Provocation; 6] = [
        ("zero increment", |stream| [connect(stream), window(stream, 0)].concat()),
        ("window overflow", |stream| [connect(stream), window(stream, u32::MAX >> 1)].concat()),
        ("frame after END_STREAM", |stream| [headers(stream, &TARGET, true), data(stream, b"x")].concat()),
        ("HEADERS after END_STREAM", |stream| headers(stream, &TARGET, true).repeat(2)),
        ("malformed trailers", |stream| [connect(stream), headers(stream, &[(":path", "/")], true)].concat()),
        // The reset flood, CVE-2019-9514.
        ("malformed", |stream| headers(stream, &[(":method", "CONNECT"), ("a", " b")], false)),
    ];
    for (name, provocation) in provocations {
        let (count, reason) = until_cut_off(&mut server(), |count| provocation(2 * count + 1));
        assert_eq!((count, reason), (400, Violation::Abuse(Abuse::ProvokedReset)), "{name}");
    }
}

#[test]
fn refused_streams_flood() {
    let mut server = serving(0);
    for stream in 0..200 {
        feed(&mut server, &connect(2 * stream + 1)).unwrap();
    }
    assert_cut_off(server, Abuse::ProvokedReset, |count| connect(2 * count + 401));
}

#[test]
fn settings_flood_cve_2019_9515() {
    // One was spent by the preface.
    let (count, reason) = until_cut_off(&mut server(), |_| settings(&[]));
    assert_eq!((count, reason), (99, Violation::Abuse(Abuse::Settings)));
    assert_cut_off(server(), Abuse::Settings, |count| {
        let ack = frame(kind::SETTINGS, flag::ACK, 0, &[]);
        if count == 0 { Vec::new() } else { ack }
    });
}

#[test]
fn ping_flood_cve_2019_9512() {
    assert_cut_off(server(), Abuse::Ping, |_| frame(kind::PING, 0, 0, &[0; 8]));
    assert_cut_off(client(), Abuse::Ping, |_| frame(kind::PING, flag::ACK, 0, &[0; 8]));
}

#[test]
fn empty_data_flood_cve_2019_9518() {
    assert_cut_off(serving(1), Abuse::EmptyData, |_| data(1, &[]));
    assert_cut_off(serving(1), Abuse::EmptyData, |_| frame(kind::DATA, flag::PADDED, 1, &[3, 0, 0, 0]));
}

#[test]
fn continuation_flood_cve_2024_27316() {
    let pieces = |piece: Vec<u8>| {
        move |count| match count {
            0 => frame(kind::HEADERS, 0, 1, &[]),
            _ => frame(kind::CONTINUATION, 0, 1, &piece),
        }
    };
    let number = until_cut_off(&mut server(), pieces(Vec::new()));
    assert_eq!(number, (33, Violation::Abuse(Abuse::Continuation)));
    let bytes = until_cut_off(&mut server(), pieces(vec![0x82; 16_384]));
    assert_eq!(bytes, (6, Violation::Abuse(Abuse::Continuation)), "80 KiB");
}

#[test]
fn window_update_flood() {
    assert_cut_off(serving(1), Abuse::WindowUpdate, |_| window(0, 1));
    assert_cut_off(serving(1), Abuse::WindowUpdate, |_| window(1, 1));
}

#[test]
fn priority_flood_cve_2019_9513() {
    assert_cut_off(server(), Abuse::Priority, |count| frame(kind::PRIORITY, 0, 2 * count + 1, &[0; 5]));
}

#[test]
fn unknown_frame_flood() {
    assert_cut_off(server(), Abuse::UnknownFrame, |count| {
        frame(0x20 + count.to_le_bytes()[0] % 100, 0, 0, &[0; 100])
    });
}

#[test]
fn late_frame_flood() {
    let mut server = serving(1);
    server.reset(1, Code::CANCEL);
    assert_cut_off(server, Abuse::LateFrame, |_| data(1, b"x"));
}

#[test]
fn interim_response_flood() {
    let mut client = client();
    client.send_connect("a:1", &[]).unwrap();
    assert_cut_off(client, Abuse::Interim, |_| headers(1, &[(":status", "103")], false));
}

#[test]
fn goaway_flood() {
    assert_cut_off(client(), Abuse::GoAway, |_| goaway(0, 0));
}

#[test]
fn zero_length_headers_cve_2019_9516() {
    // Two empty strings in three bytes: each counts with its overhead, and the message is malformed in any case.
    let bomb = frame(kind::HEADERS, flag::END_HEADERS, 1, &[0; 3 * 5_000]);
    let mut server = server();
    assert_eq!(feed(&mut server, &bomb), Ok(vec![]));
    let sent = output(&mut server);
    assert_eq!(sent.iter().map(|frame| frame.kind).collect::<Vec<_>>(), [kind::HEADERS, kind::RST_STREAM]);
    let few = frame(kind::HEADERS, flag::END_HEADERS, 3, &[0; 3 * 50]);
    assert_eq!(feed(&mut server, &few), Ok(vec![]));
    assert_eq!(output(&mut server)[0].number(), Code::PROTOCOL_ERROR.0);
}

#[test]
fn header_list_size_is_enforced() {
    let large = [(":method", "CONNECT"), (":authority", "a:1"), ("x", &"v".repeat(70_000))];
    let all = block(&large);
    let mut input = frame(kind::HEADERS, 0, 1, &all[..16_384]);
    for part in all[16_384..].chunks(16_384) {
        input.extend(frame(kind::CONTINUATION, 0, 1, part));
    }
    input.extend(frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]));
    let mut server = server();
    assert_eq!(feed(&mut server, &input), Ok(vec![]));
    let sent = output(&mut server);
    assert_eq!((sent[0].kind, sent[0].flags), (kind::HEADERS, flag::END_HEADERS | flag::END_STREAM));
    assert_eq!(sent[0].payload, [0x08, 3, b'4', b'3', b'1']);
    assert_eq!((sent[1].kind, sent[1].number()), (kind::RST_STREAM, 0));
    assert_eq!(server.active_streams(), 0);
    assert_eq!(feed(&mut server, &connect(3)).unwrap().len(), 1);
    // A client resets the stream, and reports it.
    let mut client = client();
    client.send_connect("a:1", &[]).unwrap();
    let events = feed(&mut client, &input).unwrap();
    assert!(matches!(events[..], [Event::Reset { stream: 1, code: Code::PROTOCOL_ERROR, .. }]));
}

#[test]
fn hpack_bomb() {
    // Before our SETTINGS are acknowledged the peer has a table of 4,096 bytes: an entry of that size, then references.
    let mut server = Connection::server(Settings::default());
    let mut bomb = vec![0x40, 1, b'a', 0x7f, 0xe0, 0x1e];
    bomb.extend_from_slice(&[b'v'; 4_063]);
    bomb.extend_from_slice(&[0xbe; 1_000]);
    let input =
        [&crate::frame::PREFACE[..], &settings(&[]), &frame(kind::HEADERS, flag::END_HEADERS, 1, &bomb)];
    let error = feed(&mut server, &input.concat()).unwrap_err();
    assert_eq!(error.reason, Violation::Abuse(Abuse::HpackBomb));
    assert_eq!(error.code, Code::ENHANCE_YOUR_CALM);
}

#[test]
fn a_peer_that_does_not_read_its_answers_is_cut_off() {
    let mut server = serving(1);
    let mut fed = Ok(vec![]);
    for _ in 0..10 {
        server.tick(FULL_RETURN);
        fed = fed.and_then(|_| feed(&mut server, &frame(kind::PING, 0, 0, &[0; 8]).repeat(900)));
    }
    assert_eq!(fed.unwrap_err().reason, Violation::Abuse(Abuse::Output));
    assert!(server.output().len() < 64 * 1024 + 100);
}

#[test]
fn a_peer_that_does_not_read_responses_is_cut_off() {
    let mut server = server();
    let label = "v".repeat(1_000);
    let opened = (0..5_000).find_map(|count| {
        let stream = 2 * count + 1;
        let fed = feed(&mut server, &connect(stream));
        fed.and_then(|_| {
            server.send_response(stream, 200, &[("baggage", &label)], false).unwrap();
            feed(&mut server, &reset(stream, 8))
        })
        .err()
    });
    assert_eq!(opened.map(|error| error.reason), Some(Violation::Abuse(Abuse::Output)));
}

#[test]
fn honest_loads_meet_no_budget() {
    let mut server = server();
    let mut answers = 0;
    for count in 0..20_000 {
        let stream = 2 * count + 1;
        // A short connection whose client acknowledges everything, measures round trips, and aborts in the end.
        feed(&mut server, &connect(stream)).unwrap();
        server.send_response(stream, 200, &[], false).unwrap();
        feed(&mut server, &[data(stream, b"ping"), frame(kind::PING, 0, 0, &[0; 8])].concat()).unwrap();
        server.grant(stream, 4);
        server.data_header(stream, 4, false).unwrap();
        feed(&mut server, &[window(stream, 4), window(0, 4)].concat()).unwrap();
        match count % 3 {
            0 => drop(feed(&mut server, &reset(stream, 8)).unwrap()),
            1 => {
                server.reset(stream, Code::CANCEL);
                feed(&mut server, &[data(stream, b"late"), window(stream, 4)].concat()).unwrap();
            }
            _ => {
                server.end_stream(stream).unwrap();
                feed(&mut server, &[super::wire::end(stream), window(stream, 4)].concat()).unwrap();
            }
        }
        answers += output(&mut server).len();
    }
    assert!(answers > 40_000);
    assert_eq!(server.active_streams(), 0);
}

#[test]
fn all_streams_may_be_aborted_at_once_and_time_returns_what_was_spent() {
    let mut server = server();
    for round in 0..20 {
        let streams = (0..200).map(|count| 2 * (round * 200 + count) + 1);
        feed(&mut server, &streams.clone().flat_map(connect).collect::<Vec<u8>>()).unwrap();
        feed(&mut server, &streams.flat_map(|stream| reset(stream, 8)).collect::<Vec<u8>>()).unwrap();
        for _ in 0..50 {
            server.tick(FULL_RETURN / 100);
        }
    }
    let mut client = tunnelling(1);
    client.tick(FULL_RETURN * 1000);
    assert!(feed(&mut client, &headers(1, &OK, true)).is_ok());
}
