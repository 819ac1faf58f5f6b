//! Our client against a scripted server: the exact frames, as ztunnel's.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::Duration;

use isthmus_hbone::client::{self, Tunnel};
use isthmus_hbone::{
    ConnectStatus, Head, OpenError, Reason, ResponseHead, Settings, Stream, StreamError, TunnelError,
};
use isthmus_kit::hbone::{Frame, HbonePeer, hex, kind};
use isthmus_rt::task::Tasks;
use tokio::io::DuplexStream;

type Peer = HbonePeer<DuplexStream>;

async fn pair(tasks: &Tasks) -> (Tunnel, Peer) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let settings = Settings::default();
    let (tunnel, peer) =
        tokio::join!(async { client::start(ours, &settings, tasks) }, HbonePeer::server(theirs));
    (tunnel.unwrap(), peer.unwrap())
}

fn head() -> Head {
    Head::new("10.0.0.1:80".parse().unwrap())
}

/// Opens a stream that the peer accepts.
async fn accepted(tunnel: &Tunnel, peer: &mut Peer) -> (Stream, ResponseHead, u32) {
    let head = head();
    let answer = async {
        let stream = peer.next(kind::HEADERS).await.unwrap().stream;
        peer.headers(stream, &[(":status", "200"), ("baggage", "service.name=b")], false).await.unwrap();
        stream
    };
    let (opened, id) = tokio::join!(tunnel.open(&head), answer);
    let (stream, response) = opened.unwrap();
    (stream, response, id)
}

/// The error of an open whose CONNECT the peer treats with `answer`.
async fn refused(answer: impl AsyncFn(&mut Peer, u32)) -> (OpenError, Tunnel, Peer, Tasks) {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let head = head();
    let script = async {
        let stream = peer.next(kind::HEADERS).await.unwrap().stream;
        answer(&mut peer, stream).await;
    };
    let (opened, ()) = tokio::join!(tunnel.open(&head), script);
    (opened.unwrap_err(), tunnel, peer, tasks)
}

#[tokio::test]
async fn settings_window_and_connect_are_in_ztunnels_order() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let settings = peer.recv().await.unwrap().unwrap();
    // As ztunnel's, but for HEADER_TABLE_SIZE 0 before it and windows that begin small.
    let want = "000100000000 000200000000 000400010000 000500100000 000600004000";
    assert_eq!((settings.kind, settings.payload), (kind::SETTINGS, hex(want)));
    let window = peer.next(kind::WINDOW_UPDATE).await.unwrap();
    let increment = Settings::default().connection_window - 65_535;
    assert_eq!((window.stream, window.payload), (0, increment.to_be_bytes().to_vec()));

    let full = Head {
        baggage: Some("k8s.namespace.name=sample,service.name=sleep".into()),
        forwarded: Some(r#"for="10.0.0.9:41000";host=h.sample.svc.cluster.local"#.into()),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".into()),
        forwarded_network: Some("east".into()),
        ..Head::new("h.sample.svc.cluster.local:5000".parse().unwrap())
    };
    let script = async {
        let request = peer.next(kind::HEADERS).await.unwrap();
        assert_eq!((request.stream, request.flags), (1, 4), "END_HEADERS and not END_STREAM");
        let headers = request.headers().unwrap();
        let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [":method", ":authority", "baggage", "forwarded", "traceparent", "x-forwarded-network"]
        );
        assert_eq!(headers[0].1, "CONNECT");
        assert_eq!(headers[1].1, "h.sample.svc.cluster.local:5000");
        assert_eq!(Some(&headers[3].1), full.forwarded.as_ref());
        peer.headers(1, &[(":status", "200"), ("baggage", "a=1"), ("baggage", "b=2")], false).await.unwrap();
    };
    let (opened, ()) = tokio::join!(tunnel.open(&full), script);
    assert_eq!(
        opened.unwrap().1,
        ResponseHead { status: ConnectStatus::OK, baggage: Some("a=1,b=2".into()) }
    );
}

#[tokio::test]
async fn halves_end_independently() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let (mut stream, response, id) = accepted(&tunnel, &mut peer).await;
    assert_eq!(response.baggage.as_deref(), Some("service.name=b"));
    stream.send(b"ping").await.unwrap();
    stream.finish().unwrap();
    stream.finish().unwrap();
    let sent = peer.next_of_streams().await.unwrap();
    assert_eq!((sent.payload.as_slice(), sent.ends_stream()), (&b"ping"[..], false));
    let end = peer.next_of_streams().await.unwrap();
    assert!(end.payload.is_empty() && end.ends_stream(), "{end:?}");
    assert_eq!(stream.send(b"x").await, Err(StreamError::Finished));

    peer.data(id, b"pong", false).await.unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap(), "pong");
    peer.data(id, b"", true).await.unwrap();
    assert!(stream.recv().await.is_none());
    assert_eq!(tunnel.active_streams(), 1);
    drop(stream);
    assert_eq!(tunnel.active_streams(), 0);
}

#[tokio::test]
async fn dropping_an_unfinished_stream_resets_it_with_cancel() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let (stream, _, id) = accepted(&tunnel, &mut peer).await;
    drop(stream);
    let reset = peer.next(kind::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code().unwrap()), (id, 8));
    let (mut stream, _, id) = accepted(&tunnel, &mut peer).await;
    stream.reset(Reason::CONNECT_ERROR);
    let reset = peer.next(kind::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code().unwrap()), (id, 10));
}

#[tokio::test]
async fn resets_are_typed_and_delivered_after_earlier_data() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    for code in [8, 10, 0, 0xdead] {
        let (mut stream, _, id) = accepted(&tunnel, &mut peer).await;
        peer.data(id, b"last", false).await.unwrap();
        peer.reset(id, code).await.unwrap();
        assert_eq!(stream.recv().await.unwrap().unwrap(), "last");
        let error = stream.recv().await.unwrap().unwrap_err();
        assert_eq!(error, StreamError::Reset(Reason(code)));
        assert_eq!(stream.send(b"x").await, Err(error));
    }
    // After END_STREAM a reset concerns the other half only.
    let (stream, _, id) = accepted(&tunnel, &mut peer).await;
    peer.data(id, b"all", true).await.unwrap();
    peer.reset(id, 0).await.unwrap();
    let (mut recv, mut send) = stream.split();
    assert_eq!(send.lost().await, StreamError::Reset(Reason::NO_ERROR));
    assert_eq!(recv.recv().await.unwrap().unwrap(), "all");
    assert!(recv.recv().await.is_none());
}

#[tokio::test]
async fn answer_other_than_200_is_not_retryable() {
    let (error, tunnel, ..) = refused(async |peer, stream| {
        peer.headers(stream, &[(":status", "401")], true).await.unwrap();
        peer.reset(stream, 0).await.unwrap();
    })
    .await;
    assert_eq!(error, OpenError::Status(ConnectStatus::UNAUTHORIZED));
    assert!(!error.is_retryable());
    assert!(tunnel.is_usable());
    assert_eq!(tunnel.active_streams(), 0);
}

#[tokio::test]
async fn refused_stream_is_retryable_and_other_resets_are_not() {
    let (error, tunnel, ..) = refused(async |peer, stream| peer.reset(stream, 7).await.unwrap()).await;
    assert_eq!((error.is_retryable(), error), (true, OpenError::Refused));
    assert!(tunnel.is_usable());
    let (error, ..) = refused(async |peer, stream| peer.reset(stream, 8).await.unwrap()).await;
    assert_eq!((error.is_retryable(), error), (false, OpenError::Reset(Reason::CANCEL)));
}

#[tokio::test]
async fn goaway_fails_only_streams_above_its_last_stream_id() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let (mut counted, _, id) = accepted(&tunnel, &mut peer).await;
    let head = head();
    let script = async {
        peer.next(kind::HEADERS).await.unwrap();
        peer.goaway(id, 0).await.unwrap();
    };
    let (opened, ()) = tokio::join!(tunnel.open(&head), script);
    let error = opened.unwrap_err();
    assert_eq!((error.is_retryable(), error), (true, OpenError::GoingAway));
    assert!(!tunnel.is_usable());
    assert_eq!(tunnel.open(&head).await.unwrap_err(), OpenError::GoingAway);
    peer.data(id, b"still here", true).await.unwrap();
    assert_eq!(counted.recv().await.unwrap().unwrap(), "still here");
}

#[tokio::test]
async fn lost_connection_is_not_end_of_stream() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let (mut stream, _, id) = accepted(&tunnel, &mut peer).await;
    peer.data(id, b"part", false).await.unwrap();
    drop(peer);
    assert_eq!(stream.recv().await.unwrap().unwrap(), "part");
    assert!(matches!(stream.recv().await, Some(Err(StreamError::Lost(_)))));
    assert!(matches!(stream.send(b"x").await, Err(StreamError::Lost(_))));
    assert!(!tunnel.is_usable());
    assert!(matches!(tunnel.open(&head()).await, Err(OpenError::Lost(_) | OpenError::GoingAway)));
}

#[tokio::test]
async fn peers_stream_limit_is_respected() {
    let tasks = Tasks::new("test");
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let settings = Settings::default();
    let (tunnel, peer) = tokio::join!(
        async { client::start(ours, &settings, &tasks) },
        HbonePeer::server_with(theirs, "000300000002")
    );
    let (tunnel, mut peer) = (tunnel.unwrap(), peer.unwrap());
    assert_eq!(tunnel.limit(), 100, "before the peer's settings");
    let one = accepted(&tunnel, &mut peer).await;
    assert_eq!(tunnel.limit(), 2);
    let _two = accepted(&tunnel, &mut peer).await;
    assert!(!tunnel.is_usable());
    assert_eq!(tunnel.open(&head()).await.unwrap_err(), OpenError::Full);
    drop(one);
    assert!(tunnel.is_usable());
}

#[tokio::test]
async fn graceful_close_ends_with_a_goaway_after_the_last_stream() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let (mut stream, _, id) = accepted(&tunnel, &mut peer).await;
    tunnel.close_gracefully();
    assert_eq!(tunnel.open(&head()).await.unwrap_err(), OpenError::GoingAway);
    stream.send(b"still").await.unwrap();
    assert_eq!(peer.next(kind::DATA).await.unwrap().payload, b"still");
    stream.finish().unwrap();
    peer.data(id, b"", true).await.unwrap();
    assert!(stream.recv().await.is_none());
    drop(stream);
    let rest = peer.rest().await.unwrap();
    let goaway = rest.iter().find(|frame| frame.kind == kind::GOAWAY).unwrap();
    assert_eq!(goaway.code().unwrap(), 0);
    tasks.wait().await;
    assert_eq!(tunnel.ended(), Some(&TunnelError::Closed));
}

#[tokio::test(start_paused = true)]
async fn silent_peer_is_pinged_after_10_s_and_times_out_20_s_later() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let start = tokio::time::Instant::now();
    let (mut stream, ..) = accepted(&tunnel, &mut peer).await;
    peer.next(kind::PING).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
    let error = stream.recv().await.unwrap().unwrap_err();
    assert_eq!(error, StreamError::Lost(TunnelError::KeepaliveTimeout(Duration::from_secs(20))));
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn received_data_and_ping_answers_keep_the_tunnel_alive() {
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let start = tokio::time::Instant::now();
    let (mut stream, _, id) = accepted(&tunnel, &mut peer).await;
    // A trickle of data and no answer to a PING, for longer than any timeout: none is even sent.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(9)).await;
        peer.data(id, b"x", false).await.unwrap();
        stream.recv().await.unwrap().unwrap();
        stream.release(1);
    }
    // Silence except for answers.
    let mut pings: Vec<Frame> = Vec::new();
    while start.elapsed().as_secs() < 400 {
        let ping = peer.next(kind::PING).await.unwrap();
        peer.send(kind::PING, 1, 0, &ping.payload).await.unwrap();
        pings.push(ping);
    }
    assert!((20..=22).contains(&pings.len()), "{}", pings.len());
    assert!(tunnel.is_usable());
}

#[tokio::test(start_paused = true)]
async fn a_window_grows_while_its_reader_takes_it_within_two_round_trips() {
    const WINDOW: usize = 256 * 1024;
    const ROUND_TRIP: Duration = Duration::from_millis(10);
    let tasks = Tasks::new("test");
    let (tunnel, mut peer) = pair(&tasks).await;
    let (mut stream, _, id) = accepted(&tunnel, &mut peer).await;
    let mut take = async |peer: &mut Peer, bytes: usize| {
        for _ in 0..bytes / 16_384 {
            peer.data(id, &[7; 16_384], false).await.unwrap();
            let mut left = 16_384;
            while left > 0 {
                let data = stream.recv().await.unwrap().unwrap();
                stream.release(data.len());
                left -= data.len();
            }
        }
    };
    // Small windows double at once: from 64 KiB to 128, and to 256, which is then taken.
    take(&mut peer, WINDOW / 4 + WINDOW / 2 + WINDOW).await;
    let ping = peer.next(kind::PING).await.unwrap();
    tokio::time::sleep(ROUND_TRIP).await;
    peer.send(kind::PING, 1, 0, &ping.payload).await.unwrap();
    take(&mut peer, WINDOW).await;
    // What was taken since the PING comes back, and a window more.
    let mut credit = 0;
    while credit < 2 * WINDOW {
        let update = peer.next(kind::WINDOW_UPDATE).await.unwrap();
        if update.stream == id {
            credit += u32::from_be_bytes(update.payload[..].try_into().unwrap()) as usize;
        }
    }
    assert_eq!(credit, 2 * WINDOW);
}
