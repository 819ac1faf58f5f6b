//! Our server against a scripted client: the exact frames of the reference.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::Duration;

use bytes::Bytes;
use isthmus_hbone::server::{self, Request};
use isthmus_hbone::{Settings, Stream, TunnelError};
use isthmus_kit::hbone::{HbonePeer, hex, kind};
use isthmus_rt::drain::{self, Drain, Outcome};
use isthmus_rt::task::Tasks;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};

struct World {
    peer: HbonePeer<DuplexStream>,
    requests: mpsc::UnboundedReceiver<Request>,
    ended: oneshot::Receiver<Result<(), TunnelError>>,
    drain: Option<Drain>,
    tasks: Tasks,
}

impl World {
    async fn new() -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let tasks = Tasks::new("test");
        let (drain, watch) = drain::channel();
        let (hand_out, requests) = mpsc::unbounded_channel();
        let (done, ended) = oneshot::channel();
        tasks.spawn("server", async move {
            let settings = Settings::default();
            let served = server::serve(ours, &settings, watch, |request| hand_out.send(request).unwrap());
            let _ = done.send(served.await);
        });
        let peer = HbonePeer::client(theirs).await.unwrap();
        Self { peer, requests, ended, drain: Some(drain), tasks }
    }

    async fn connect(&mut self, stream: u32, more: &[(&str, &str)]) {
        let pseudo = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        self.peer.headers(stream, &[&pseudo, more].concat(), false).await.unwrap();
    }

    async fn request(&mut self) -> Request {
        let next = tokio::time::timeout(Duration::from_secs(10), self.requests.recv());
        next.await.expect("no request came").unwrap()
    }

    async fn accepted(&mut self, id: u32) -> Stream {
        self.connect(id, &[]).await;
        let stream = self.request().await.accept(None).unwrap();
        assert_eq!(self.peer.next(kind::HEADERS).await.unwrap().stream, id);
        stream
    }
}

#[tokio::test]
async fn settings_and_window_are_the_references_bytes() {
    let mut world = World::new().await;
    let settings = world.peer.recv().await.unwrap().unwrap();
    // As ztunnel's, and HEADER_TABLE_SIZE 0 before it.
    let want = "000100000000 0003000000c8 000400400000 000500100000 000600010000";
    assert_eq!((settings.kind, settings.payload), (kind::SETTINGS, hex(want)));
    let window = world.peer.next(kind::WINDOW_UPDATE).await.unwrap();
    let increment = Settings::default().connection_window - 65_535;
    assert_eq!((window.stream, window.payload), (0, increment.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn a_connect_is_parsed_and_accepted() {
    let mut world = World::new().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    world
        .connect(
            1,
            &[
                ("x-forwarded-network", "East"),
                ("traceparent", trace),
                ("baggage", "a=1"),
                ("forwarded", r#"for="10.0.0.9:41000""#),
                ("baggage", "b=2"),
                ("unknown", "ignored"),
            ],
        )
        .await;
    let request = world.request().await;
    let head = request.head.clone().unwrap();
    assert_eq!(head.authority.to_string(), "10.0.0.1:80");
    assert_eq!(head.baggage.as_deref(), Some("a=1,b=2"));
    assert_eq!(head.forwarded.as_deref(), Some(r#"for="10.0.0.9:41000""#));
    assert_eq!(head.traceparent.as_deref(), Some(trace));
    assert_eq!(head.forwarded_network.as_deref(), Some("East"));
    let mut stream = request.accept(Some("service.name=b".into())).unwrap();
    let answer = world.peer.next(kind::HEADERS).await.unwrap();
    assert!(!answer.ends_stream());
    let want = [(":status", "200"), ("baggage", "service.name=b")];
    assert_eq!(answer.headers().unwrap(), want.map(|(name, value)| (name.to_owned(), value.to_owned())));

    world.peer.data(1, b"ping", false).await.unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap(), "ping");
    stream.send(Bytes::from_static(b"pong")).await.unwrap();
    stream.finish().unwrap();
    assert_eq!(world.peer.next(kind::DATA).await.unwrap().payload, b"pong");
    assert!(world.peer.next(kind::DATA).await.unwrap().ends_stream());
    // The other half is still open.
    world.peer.data(1, b"more", true).await.unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap(), "more");
    assert!(stream.recv().await.is_none());
}

#[tokio::test]
async fn bad_requests_say_what_is_wrong_and_get_their_status() {
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "h:80")];
    let no_port = [(":method", "CONNECT"), (":authority", "10.0.0.1")];
    let no_authority = [(":method", "CONNECT")];
    let user = [(":method", "CONNECT"), (":authority", "me@h:80")];
    let cases: [(&[(&str, &str)], &str); 4] = [
        (&get, "expected method CONNECT, got GET"),
        (&no_port, "no valid authority pseudo header: 10.0.0.1"),
        (&no_authority, "no valid authority pseudo header: "),
        (&user, "no valid authority pseudo header: me@h:80"),
    ];
    let mut world = World::new().await;
    for (id, (headers, want)) in (1..).step_by(2).zip(cases) {
        world.peer.headers(id, headers, false).await.unwrap();
        let request = world.request().await;
        let bad = request.head.clone().unwrap_err();
        assert_eq!((bad.status, bad.text.as_str()), (400, want));
        request.reject(bad.status);
        let answer = world.peer.next(kind::HEADERS).await.unwrap();
        assert_eq!((answer.stream, answer.ends_stream()), (id, true));
        assert_eq!(answer.headers().unwrap(), [(":status".to_owned(), "400".to_owned())]);
        // The rest of the request is not wanted.
        let reset = world.peer.next(kind::RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, reset.code().unwrap()), (id, 0));
    }
}

#[tokio::test]
async fn malformed_labels_harm_nobody() {
    let mut world = World::new().await;
    let mut good = world.accepted(1).await;
    let odd = "0".repeat(55);
    for (id, trace) in (3..).step_by(2).zip(["", "-", odd.as_str(), "00-zz", &"-".repeat(55)]) {
        world.connect(id, &[("traceparent", trace), ("baggage", ",=,="), ("forwarded", ";;=\"")]).await;
        let request = world.request().await;
        assert_eq!(request.head.as_ref().unwrap().traceparent, None);
        request.reject(401);
    }
    world.peer.data(1, b"fine", false).await.unwrap();
    assert_eq!(good.recv().await.unwrap().unwrap(), "fine");
}

#[tokio::test]
async fn a_request_that_nobody_answers_is_refused_unseen() {
    let mut world = World::new().await;
    world.connect(1, &[]).await;
    drop(world.request().await);
    let reset = world.peer.next(kind::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code().unwrap()), (1, 7));
}

#[tokio::test]
async fn the_server_is_told_when_the_client_gives_up() {
    let mut world = World::new().await;
    world.connect(1, &[]).await;
    let (_, mut responder) = world.request().await.into_parts();
    world.peer.reset(1, 8).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), responder.cancelled()).await.unwrap();
    assert!(responder.accept(None).is_err());
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let mut world = World::new().await;
    world.peer.ack_settings().await.unwrap();
    for id in (1..).step_by(2).take(201) {
        world.connect(id, &[]).await;
    }
    let reset = world.peer.next(kind::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code().unwrap()), (401, 7));
    assert_eq!(world.requests.len(), 200);
}

#[tokio::test]
async fn a_drain_answers_every_connect_it_counts() {
    let mut world = World::new().await;
    let mut old = world.accepted(1).await;
    let drain = world.drain.take().unwrap();
    let (finished, drained) = oneshot::channel();
    world.tasks.spawn("drain", async move {
        let _ = finished.send(drain.shutdown(Duration::from_secs(60)).await);
    });
    let first = world.peer.next(kind::GOAWAY).await.unwrap();
    assert_eq!((first.last_stream().unwrap(), first.code().unwrap()), (0x7fff_ffff, 0));
    let ping = world.peer.next(kind::PING).await.unwrap();
    // In flight when the GOAWAY was sent, and the client answers the PING behind it.
    world.connect(3, &[]).await;
    world.peer.send(kind::PING, 1, 0, &ping.payload).await.unwrap();
    let late = world.request().await.accept(None).unwrap();
    let mut answered = false;
    let last = loop {
        let frame = world.peer.next_of_streams().await.unwrap();
        match frame.kind {
            kind::HEADERS => answered = frame.stream == 3,
            kind::GOAWAY => break frame,
            other => panic!("unexpected frame of type {other}"),
        }
    };
    assert_eq!(last.last_stream().unwrap(), 3);
    if !answered {
        assert_eq!(world.peer.next(kind::HEADERS).await.unwrap().stream, 3);
    }
    // Later ones are not looked at.
    world.connect(5, &[]).await;
    world.peer.data(1, b"still open", true).await.unwrap();
    assert_eq!(old.recv().await.unwrap().unwrap(), "still open");
    assert!(world.requests.is_empty());
    old.finish().unwrap();
    drop((old, late));
    assert_eq!(world.ended.await.unwrap(), Ok(()));
    assert_eq!(drained.await.unwrap(), Outcome::Drained);
}

#[tokio::test]
async fn a_connect_behind_a_preface_that_the_drain_overtook_is_answered() {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (drain, watch) = drain::channel();
    let settings = Settings::default();
    let mut asked = 0;
    let served = server::serve(ours, &settings, watch, |request| {
        asked += 1;
        request.reject(503);
    });
    let client = async {
        // Both ends have begun before the client says a word.
        tokio::task::yield_now().await;
        let mut peer = HbonePeer::client(theirs).await.unwrap();
        let pseudo = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        peer.headers(1, &pseudo, false).await.unwrap();
        // The answer and the goodbye may come in either order; the server closes when both are said.
        let (mut goodbyes, mut answered) = (Vec::new(), Vec::new());
        while let Some(frame) = peer.recv().await.unwrap() {
            match frame.kind {
                kind::GOAWAY => goodbyes.push((frame.last_stream().unwrap(), frame.code().unwrap())),
                kind::HEADERS => answered.push(frame.stream),
                kind::PING if frame.flags & 1 == 0 => {
                    peer.send(kind::PING, 1, 0, &frame.payload).await.unwrap()
                }
                _ => {}
            }
        }
        assert_eq!(goodbyes, [(0x7fff_ffff, 0), (1, 0)]);
        answered
    };
    let (outcome, ended, answered) = tokio::join!(drain.shutdown(Duration::from_secs(60)), served, client);
    assert_eq!((outcome, ended, answered), (Outcome::Drained, Ok(()), vec![1]));
    assert_eq!(asked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_forced_drain_ends_at_the_deadline_with_a_goodbye() {
    let mut world = World::new().await;
    let mut stream = world.accepted(1).await;
    let drain = world.drain.take().unwrap();
    let (outcome, ended) = tokio::join!(drain.shutdown(Duration::from_secs(5)), world.ended);
    assert_eq!(outcome, Outcome::Forced);
    assert_eq!(ended.unwrap(), Err(TunnelError::Forced));
    assert!(stream.recv().await.unwrap().is_err());
    let rest = world.peer.rest().await.unwrap();
    let goodbyes = rest.iter().filter(|frame| frame.kind == kind::GOAWAY);
    let last: Vec<_> = goodbyes.map(|frame| frame.last_stream().unwrap()).collect();
    assert_eq!(last, [0x7fff_ffff, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_speak_is_given_up() {
    let (ours, _theirs) = tokio::io::duplex(1024);
    let (_drain, watch) = drain::channel();
    let ended = server::serve(ours, &Settings::default(), watch, |_| {}).await;
    assert_eq!(ended, Err(TunnelError::HandshakeTimeout(Duration::from_secs(10))));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_falls_silent_is_given_up() {
    let world = World::new().await;
    let start = tokio::time::Instant::now();
    let ended = world.ended.await.unwrap();
    assert_eq!(ended, Err(TunnelError::KeepaliveTimeout(Duration::from_secs(20))));
    assert_eq!(start.elapsed().as_secs(), 30);
}
