//! Our end against the `h2` crate's ends, and against itself, over byte streams in memory. The clock is paused: a deadlock
//! ends in the timeout at once.

#![expect(clippy::unwrap_used, reason = "all of this is tests")]

mod driver;
mod peer;
mod scripts;

use std::time::Duration;

use driver::Driver;
use isthmus_http2::{Code, Connection, Settings};
use peer::{bytes, h2_client, h2_echo};
use tokio::io::{DuplexStream, duplex};

fn settings(stream_window: u32) -> Settings {
    Settings { stream_window, connection_window: 65_535, max_concurrent_streams: 100, ..Settings::default() }
}

fn server(stream_window: u32) -> Driver {
    Driver::new(Connection::server(settings(stream_window)))
}

fn client(stream_window: u32) -> Driver {
    Driver::new(Connection::client(settings(stream_window)))
}

fn pipe() -> (DuplexStream, DuplexStream) {
    duplex(10_000)
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("no deadlock")
}

/// Sizes that end at, before and behind windows and frames.
const SIZES: [usize; 12] = [0, 1, 99, 100, 101, 1_000, 16_384, 16_385, 65_535, 65_536, 70_000, 200_000];

/// Windows of ours, and slices in which we are handed the input.
const SHAPES: [(u32, &[usize]); 4] =
    [(100, &[16_384]), (1_000, &[1, 7, 300]), (65_535, &[4_096, 9]), (300_000, &[40_000])];

#[tokio::test(start_paused = true)]
async fn an_h2_client_is_echoed_under_small_windows() {
    for (window, slices) in SHAPES {
        for their_window in [100, 70_000] {
            let (theirs, mut ours) = pipe();
            let mut server = server(window);
            server.slices = slices.to_vec();
            let h2 = async {
                let (mut sender, peer) = h2_client(theirs, their_window).await;
                let mut streams = Vec::new();
                for (seed, size) in SIZES.into_iter().enumerate() {
                    streams
                        .push((peer::connect(&mut sender, &[("baggage", "a=1")]).await, bytes(seed, size)));
                }
                for (stream, sent) in streams {
                    let (head, received) = peer::exchange(stream, sent.clone()).await.unwrap();
                    assert_eq!(
                        (head.status.as_u16(), &head.headers["baggage"]),
                        (200, &"a=1".parse().unwrap())
                    );
                    assert!(received == sent);
                }
                drop(sender);
                peer.finish().await
            };
            let (ours, theirs) = within(async { tokio::join!(server.run(&mut ours, |_| false), h2) }).await;
            assert_eq!(ours, Ok(()));
            theirs.unwrap();
            assert!(server.is_done());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_h2_server_echoes_us_under_small_windows() {
    for (window, slices) in SHAPES {
        for their_window in [100, 70_000] {
            let (theirs, mut ours) = pipe();
            let mut client = client(window);
            client.slices = slices.to_vec();
            for (seed, size) in SIZES.into_iter().enumerate() {
                client.open(bytes(seed, size), &[("baggage", "a=1"), ("traceparent", "00-1")]);
            }
            let run = async {
                let done = client.run(&mut ours, Driver::is_done).await;
                drop(ours);
                done
            };
            let (done, _) = within(async { tokio::join!(run, h2_echo(theirs, their_window, None)) }).await;
            assert_eq!(done, Ok(()));
            for (app, (seed, size)) in client.apps.values().zip(SIZES.into_iter().enumerate()) {
                assert_eq!((app.status, app.received.len()), (Some(200), size));
                assert!(app.received == bytes(seed, size) && app.ended);
                assert!(app.labels.contains(&("baggage".to_owned(), "a=1".to_owned())));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn both_ends_are_ours() {
    for (window, slices) in SHAPES {
        let (mut left, mut right) = pipe();
        let (mut client, mut server) = (client(window), server(1_000));
        (client.slices, server.slices) = (slices.to_vec(), vec![3, 5_000]);
        for (seed, size) in SIZES.into_iter().enumerate() {
            client.open(bytes(seed, size), &[]);
        }
        let run = async {
            let done = client.run(&mut left, Driver::is_done).await;
            drop(left);
            done
        };
        let (left, right) = within(async { tokio::join!(run, server.run(&mut right, |_| false)) }).await;
        assert_eq!((left, right), (Ok(()), Ok(())));
        for (app, (seed, size)) in client.apps.values().zip(SIZES.into_iter().enumerate()) {
            assert!(app.received == bytes(seed, size) && app.ended);
        }
    }
}

/// Many streams one after the other and at the same time; labels that are Huffman-coded and indexed in every way.
#[tokio::test(start_paused = true)]
async fn many_streams_of_an_h2_client() {
    let (theirs, mut ours) = pipe();
    let mut server = server(65_535);
    let printable: String = (0x21..0x7f_u8).map(char::from).collect();
    let h2 = async {
        let (mut sender, peer) = h2_client(theirs, 65_535).await;
        for round in 0..20 {
            let label = format!("{printable}{round}");
            let mut streams = Vec::new();
            for _ in 0..50 {
                streams
                    .push(peer::connect(&mut sender, &[("baggage", &label), ("x-more", &printable)]).await);
            }
            for (seed, stream) in streams.into_iter().enumerate() {
                let (head, received) = peer::exchange(stream, bytes(seed, 100)).await.unwrap();
                assert_eq!(head.headers["baggage"].to_str().unwrap(), label);
                assert!(received == bytes(seed, 100));
            }
        }
        drop(sender);
        peer.finish().await
    };
    let (ours, theirs) = within(async { tokio::join!(server.run(&mut ours, |_| false), h2) }).await;
    assert_eq!(ours, Ok(()));
    theirs.unwrap();
    assert_eq!((server.apps.len(), server.connection.active_streams()), (1_000, 0));
}

#[tokio::test(start_paused = true)]
async fn resets_of_an_h2_client_arrive_and_ours_arrive_there() {
    let (theirs, mut ours) = pipe();
    let mut server = server(65_535);
    server.reset_after = Some((5_000, Code::CONNECT_ERROR));
    let h2 = async {
        let (mut sender, peer) = h2_client(theirs, 65_535).await;
        let (_, mut send) = peer::connect(&mut sender, &[]).await;
        send.send_data(bytes(0, 10).into(), false).unwrap();
        send.send_reset(h2::Reason::CANCEL);
        drop(send);
        let stream = peer::connect(&mut sender, &[]).await;
        let error = peer::exchange(stream, bytes(1, 60_000)).await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));
        // The tunnel goes on.
        let stream = peer::connect(&mut sender, &[]).await;
        assert!(peer::exchange(stream, bytes(2, 4_000)).await.unwrap().1 == bytes(2, 4_000));
        drop(sender);
        peer.finish().await
    };
    let (ours, theirs) = within(async { tokio::join!(server.run(&mut ours, |_| false), h2) }).await;
    assert_eq!(ours, Ok(()));
    theirs.unwrap();
    let resets: Vec<_> = server.apps.values().map(|app| app.reset).collect();
    assert_eq!(resets, [Some(Code::CANCEL), Some(Code::CONNECT_ERROR), None]);
}

#[tokio::test(start_paused = true)]
async fn a_get_of_an_h2_client_is_answered_405() {
    let (theirs, mut ours) = pipe();
    let mut server = server(65_535);
    let h2 = async {
        let (mut sender, peer) = h2_client(theirs, 65_535).await;
        let request = http::Request::get("http://a/x").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 405);
        drop(sender);
        peer.finish().await
    };
    let (ours, theirs) = within(async { tokio::join!(server.run(&mut ours, |_| false), h2) }).await;
    assert_eq!(ours, Ok(()));
    theirs.unwrap();
}

#[tokio::test(start_paused = true)]
async fn our_graceful_end_lets_an_h2_client_finish() {
    let (theirs, mut ours) = pipe();
    let mut server = server(1_000);
    server.drain_after = Some(3);
    let h2 = async {
        let (mut sender, peer) = h2_client(theirs, 1_000).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(peer::connect(&mut sender, &[]).await);
        }
        for (seed, stream) in streams.into_iter().enumerate() {
            assert!(peer::exchange(stream, bytes(seed, 20_000)).await.unwrap().1 == bytes(seed, 20_000));
        }
        assert!(std::future::poll_fn(|cx| sender.poll_ready(cx)).await.is_err(), "no new streams");
        peer.finish().await
    };
    let run = async {
        let done = server.run(&mut ours, |server| server.connection.is_finished()).await;
        drop(ours);
        done
    };
    let (ours, theirs) = within(async { tokio::join!(run, h2) }).await;
    assert_eq!(ours, Ok(()));
    theirs.unwrap();
    assert!(server.connection.is_finished());
}

#[tokio::test(start_paused = true)]
async fn we_finish_when_an_h2_server_ends_gracefully() {
    let (theirs, mut ours) = pipe();
    let mut client = client(1_000);
    for seed in 0..3 {
        client.open(bytes(seed, 20_000), &[]);
    }
    client.connection.ping(*b"alive?!!");
    let run = async {
        let done = client.run(&mut ours, |client| client.connection.is_finished()).await;
        drop(ours);
        done
    };
    let (done, _) = within(async { tokio::join!(run, h2_echo(theirs, 1_000, Some(3))) }).await;
    assert_eq!(done, Ok(()));
    assert!(client.is_done());
    assert_eq!(client.goaways, [((1 << 31) - 1, Code::NO_ERROR), (5, Code::NO_ERROR)]);
    assert_eq!(client.pongs, 1);
}
