//! The published attacks on HTTP/2 over a whole tunnel, each of which ends it with ENHANCE_YOUR_CALM or costs no more than
//! is bounded. The budgets' limits are tested below, in the connection's own tests.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::server::{self, Request};
use isthmus_hbone::{Reason, Settings, TunnelError, client, copy};
use isthmus_kit::hbone::{HbonePeer, PREFACE, flag, hpack, kind};
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use pair::{soon, tcp_pair};

const CONTINUATION: u8 = 9;
const PRIORITY: u8 = 2;
const PADDED: u8 = 8;
const CONNECT: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];

/// One frame of an attack: type, flags, stream, payload.
type Sent = (u8, u8, u32, Vec<u8>);
/// A name, and what makes the server reset a stream.
type Provocation = (&'static str, fn(u32) -> Sent);

/// A scripted client and the end of the server behind it, which accepts each CONNECT and reads nothing.
struct Attacked {
    peer: HbonePeer<DuplexStream>,
    ended: oneshot::Receiver<Result<(), TunnelError>>,
    _tasks: Tasks,
    _drain: Drain,
}

async fn attacked() -> Attacked {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let tasks = Tasks::new("test");
    let (drain, watch) = drain::channel();
    let (done, ended) = oneshot::channel();
    tasks.spawn("server", async move {
        let mut kept = Vec::new();
        let accept = |request: Request| kept.extend(request.accept(None));
        let _ = done.send(server::serve(ours, &Settings::default(), watch, accept).await);
    });
    let peer = HbonePeer::client(theirs).await.unwrap();
    Attacked { peer, ended, _tasks: tasks, _drain: drain }
}

/// Sends parts of an attack, and reads what they provoke, until the tunnel ends; returns how many parts that took.
async fn assert_cut_off(name: &str, attack: impl Fn(u32) -> Vec<Sent>) {
    let mut test = attacked().await;
    let head = hpack::encode(&CONNECT);
    test.peer.send(kind::HEADERS, flag::END_HEADERS, 1, &head).await.unwrap();
    let calm = Reason::ENHANCE_YOUR_CALM;
    for part in 0..20_000 {
        let mut over = false;
        for (kind, flags, stream, payload) in attack(part) {
            over |= test.peer.send(kind, flags, stream, &payload).await.is_err();
        }
        if part % 50 == 49 {
            // A peer that does not read its answers is cut off for that.
            over |= test.peer.send(kind::PING, 0, 0, &[1; 8]).await.is_err();
            while !over {
                match soon(test.peer.recv()).await.unwrap() {
                    Some(frame) if frame.kind == kind::PING => break,
                    Some(frame) if frame.kind == kind::GOAWAY => {
                        assert_eq!(frame.code().unwrap(), calm.0, "{name}");
                        over = true;
                    }
                    Some(_) => {}
                    None => over = true,
                }
            }
        }
        if over {
            assert_eq!(soon(test.ended).await.unwrap(), Err(TunnelError::Protocol(calm)), "{name}");
            return;
        }
    }
    panic!("{name}: never cut off");
}

fn opened(stream: u32, end: bool) -> Sent {
    let flags = flag::END_HEADERS | if end { flag::END_STREAM } else { 0 };
    (kind::HEADERS, flags, stream, hpack::encode(&CONNECT))
}

fn window(stream: u32, increment: u32) -> Sent {
    (kind::WINDOW_UPDATE, 0, stream, increment.to_be_bytes().to_vec())
}

#[tokio::test]
async fn floods_of_resets_end_the_tunnel() {
    let id = |part: u32| 2 * part + 3;
    assert_cut_off("rapid reset, CVE-2023-44487", |part| {
        // In one burst: an answer that came between would be work done.
        vec![opened(id(part), false), (kind::RST_STREAM, 0, id(part), vec![0, 0, 0, 8])]
    })
    .await;
    assert_cut_off("reset flood, CVE-2019-9514", |part| {
        vec![(
            kind::HEADERS,
            flag::END_HEADERS,
            id(part),
            hpack::encode(&[(":method", "CONNECT"), ("A", "b")]),
        )]
    })
    .await;
    // Each makes the server reset a stream that it has accepted.
    let provocations: [Provocation; 5] = [
        ("WINDOW_UPDATE of 0", |id| window(id, 0)),
        ("window overflow", |id| window(id, u32::MAX >> 1)),
        ("DATA after END_STREAM", |id| (kind::DATA, 0, id, vec![7])),
        ("HEADERS after END_STREAM", |id| opened(id, true)),
        ("malformed trailers", |id| {
            let fields = hpack::encode(&[(":path", "/")]);
            (kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, id, fields)
        }),
    ];
    for (name, provocation) in provocations {
        let ends = name.contains("END_STREAM");
        assert_cut_off(&format!("CVE-2025-8671 by {name}"), |part| {
            vec![opened(id(part), ends), provocation(id(part))]
        })
        .await;
    }
}

#[tokio::test]
async fn floods_of_frames_without_work_end_the_tunnel() {
    let flood = async |name, kind, flags, stream, payload: &[u8]| {
        assert_cut_off(name, |_| vec![(kind, flags, stream, payload.to_vec())]).await;
    };
    flood("PING, CVE-2019-9512", kind::PING, 0, 0, &[0; 8]).await;
    flood("unsolicited PONG", kind::PING, flag::ACK, 0, &[0; 8]).await;
    flood("resource loop, CVE-2019-9513", PRIORITY, 0, 3, &[0, 0, 0, 1, 255]).await;
    flood("SETTINGS, CVE-2019-9515", kind::SETTINGS, 0, 0, &[]).await;
    flood("SETTINGS acknowledgements", kind::SETTINGS, flag::ACK, 0, &[]).await;
    flood("empty DATA, CVE-2019-9518", kind::DATA, 0, 1, &[]).await;
    flood("DATA of padding, CVE-2019-9518", kind::DATA, PADDED, 1, &[3, 0, 0, 0]).await;
    flood("WINDOW_UPDATE", kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).await;
    flood("unknown frames", 0x42, 0, 0, &[0; 100]).await;
    flood("GOAWAY", kind::GOAWAY, 0, 0, &[0; 8]).await;
    for (name, size) in [("empty CONTINUATION", 0), ("CONTINUATION, CVE-2024-27316", 16_000)] {
        assert_cut_off(name, |part| match part {
            0 => vec![(kind::HEADERS, 0, 3, vec![])],
            _ => vec![(CONTINUATION, 0, 3, vec![0x82; size])],
        })
        .await;
    }
    // References to one entry of the static table, each a byte.
    assert_cut_off("HPACK bomb", |part| {
        vec![(kind::HEADERS, flag::END_HEADERS, 2 * part + 3, vec![0x82; 16_000])]
    })
    .await;
    // The window of all streams flips with each frame.
    assert_cut_off("SETTINGS that change windows", |part| {
        vec![(kind::SETTINGS, 0, 0, vec![0, 4, 0, 0, [0, 255][part as usize % 2], 0])]
    })
    .await;
}

#[tokio::test]
async fn large_and_empty_header_lists_cost_their_stream_only() {
    let mut test = attacked().await;
    // CVE-2019-9516: fields without a name and a value, whose overhead counts.
    for (stream, block) in [(1, [0; 3 * 5_000].to_vec()), (3, [0; 3 * 50].to_vec())] {
        test.peer.send(kind::HEADERS, flag::END_HEADERS, stream, &block).await.unwrap();
        let reset = soon(test.peer.next(kind::RST_STREAM)).await.unwrap();
        assert_eq!(reset.stream, stream);
    }
    test.peer.headers(5, &CONNECT, false).await.unwrap();
    while soon(test.peer.next(kind::HEADERS)).await.unwrap().stream != 5 {}
}

#[tokio::test(start_paused = true)]
async fn a_preface_that_dribbles_has_no_more_time_than_one_that_does_not_come() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let (_drain, watch) = drain::channel();
    let dribble = async {
        // The preface, then SETTINGS whose last byte is missing.
        for byte in PREFACE.iter().chain(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 1]) {
            theirs.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        std::future::pending::<()>().await;
    };
    let start = tokio::time::Instant::now();
    let settings = Settings::default();
    let ended = tokio::select! {
        ended = server::serve(ours, &settings, watch, |_| {}) => ended,
        () = dribble => unreachable!(),
    };
    assert_eq!(ended, Err(TunnelError::HandshakeTimeout(Duration::from_secs(10))));
    assert_eq!(start.elapsed().as_secs(), 10);
}

/// A client's application, the copy of its connection, and a scripted server that has given these windows.
async fn sending(stream_window: &str, transport: usize) -> (TcpStream, HbonePeer<DuplexStream>, Tasks) {
    let tasks = Tasks::new("test");
    let (ours, theirs) = tokio::io::duplex(transport);
    let tunnel = client::start(ours, &Settings::default(), &tasks).unwrap();
    let mut peer = HbonePeer::server_with(theirs, &format!("0004{stream_window}")).await.unwrap();
    let head = pair::head();
    let (opened, ()) = tokio::join!(tunnel.open(&head), async {
        let id = soon(peer.next(kind::HEADERS)).await.unwrap().stream;
        peer.headers(id, &[(":status", "200")], false).await.unwrap();
    });
    let (app, tcp) = tcp_pair().await;
    let stream = opened.unwrap().0;
    tasks.spawn("copy", async move {
        copy::tunnel(tcp, stream, Arc::new(())).await;
        drop(tunnel);
    });
    (app, peer, tasks)
}

/// Bytes that an application can send before it blocks.
async fn sent_before_it_blocks(app: &TcpStream) -> usize {
    let (mut sent, piece) = (0, [7; 65_536]);
    loop {
        match app.try_write(&piece) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                let writable = tokio::time::timeout(Duration::from_millis(300), app.writable()).await;
                if writable.is_err() {
                    return sent;
                }
            }
        }
    }
}

#[tokio::test]
async fn data_dribble_cve_2019_9511_buffers_nothing() {
    let (app, mut peer, _tasks) = sending("00000001", 1 << 16).await;
    let sent = sent_before_it_blocks(&app).await;
    // Byte by byte, as credit comes: the rest stays with the application.
    for _ in 0..500 {
        let frame = soon(peer.next(kind::DATA)).await.unwrap();
        assert_eq!(frame.payload, [7]);
        peer.window_update(1, 1).await.unwrap();
    }
    assert!(sent_before_it_blocks(&app).await < 600 * 1024, "{sent} before");
}

#[tokio::test]
async fn internal_data_buffering_cve_2019_9517_is_bounded() {
    // All the credit there is, and a transport that is not read.
    let (app, peer, _tasks) = sending("7fffffff", 4096).await;
    let mut peer = peer;
    peer.window_update(0, (1 << 31) - 1 - 65_535).await.unwrap();
    let sent = sent_before_it_blocks(&app).await;
    // The sockets of both ends hold a few megabytes, the tunnel one.
    assert!(sent < 16 * 1024 * 1024, "{sent}");
}
