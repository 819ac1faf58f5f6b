//! Our server against a scripted client: the exact frames, as ztunnel's.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::time::Duration;

use isthmus_hbone::server::{self, Request};
use isthmus_hbone::{ConnectStatus, Settings, Stream, TunnelError};
use isthmus_kit::hbone::{HbonePeer, hex, kind};
use isthmus_rt::drain::{self, Drain, Outcome};
use isthmus_rt::task::Tasks;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};

struct TestServer {
    peer: HbonePeer<DuplexStream>,
    requests: mpsc::UnboundedReceiver<Request>,
    ended: oneshot::Receiver<Result<(), TunnelError>>,
    drain: Option<Drain>,
    tasks: Tasks,
}

impl TestServer {
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
async fn settings_and_window_are_in_ztunnels_order() {
    let mut test = TestServer::new().await;
    let settings = test.peer.recv().await.unwrap().unwrap();
    // As ztunnel's, but for HEADER_TABLE_SIZE 0 before it and windows that begin small.
    let want = "000100000000 0003000000c8 000400010000 000500100000 000600010000";
    assert_eq!((settings.kind, settings.payload), (kind::SETTINGS, hex(want)));
    let window = test.peer.next(kind::WINDOW_UPDATE).await.unwrap();
    let increment = Settings::default().connection_window - 65_535;
    assert_eq!((window.stream, window.payload), (0, increment.to_be_bytes().to_vec()));
}

#[tokio::test]
async fn connect_is_parsed_and_accepted() {
    let mut test = TestServer::new().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    test.connect(
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
    let request = test.request().await;
    let head = request.head.clone().unwrap();
    assert_eq!(head.authority.to_string(), "10.0.0.1:80");
    assert_eq!(head.baggage.as_deref(), Some("a=1,b=2"));
    assert_eq!(head.forwarded.as_deref(), Some(r#"for="10.0.0.9:41000""#));
    assert_eq!(head.traceparent.as_deref(), Some(trace));
    assert_eq!(head.forwarded_network.as_deref(), Some("East"));
    let mut stream = request.accept(Some("service.name=b".into())).unwrap();
    let answer = test.peer.next(kind::HEADERS).await.unwrap();
    assert!(!answer.ends_stream());
    let want = [(":status", "200"), ("baggage", "service.name=b")];
    assert_eq!(answer.headers().unwrap(), want.map(|(name, value)| (name.to_owned(), value.to_owned())));

    test.peer.data(1, b"ping", false).await.unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap(), "ping");
    stream.send(b"pong").await.unwrap();
    stream.finish().unwrap();
    assert_eq!(test.peer.next(kind::DATA).await.unwrap().payload, b"pong");
    assert!(test.peer.next(kind::DATA).await.unwrap().ends_stream());
    // The other half is still open.
    test.peer.data(1, b"more", true).await.unwrap();
    assert_eq!(stream.recv().await.unwrap().unwrap(), "more");
    assert!(stream.recv().await.is_none());
}

#[tokio::test]
async fn malformed_request_is_answered_400_and_its_error_names_the_cause() {
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
    let mut test = TestServer::new().await;
    for (id, (headers, want)) in (1..).step_by(2).zip(cases) {
        test.peer.headers(id, headers, false).await.unwrap();
        let request = test.request().await;
        let bad = request.head.clone().unwrap_err();
        assert_eq!((bad.status(), bad.to_string().as_str()), (ConnectStatus::BAD_REQUEST, want));
        request.reject(bad.status());
        let answer = test.peer.next(kind::HEADERS).await.unwrap();
        assert_eq!((answer.stream, answer.ends_stream()), (id, true));
        assert_eq!(answer.headers().unwrap(), [(":status".to_owned(), "400".to_owned())]);
        // NO_ERROR asks the client to stop sending the request (RFC 9113 §8.1).
        let reset = test.peer.next(kind::RST_STREAM).await.unwrap();
        assert_eq!((reset.stream, reset.code().unwrap()), (id, 0));
    }
}

#[tokio::test]
async fn malformed_labels_do_not_affect_other_streams() {
    let mut test = TestServer::new().await;
    let mut good = test.accepted(1).await;
    let odd = "0".repeat(55);
    for (id, trace) in (3..).step_by(2).zip(["", "-", odd.as_str(), "00-zz", &"-".repeat(55)]) {
        test.connect(id, &[("traceparent", trace), ("baggage", ",=,="), ("forwarded", ";;=\"")]).await;
        let request = test.request().await;
        assert_eq!(request.head.as_ref().unwrap().traceparent, None);
        request.reject(ConnectStatus::UNAUTHORIZED);
    }
    test.peer.data(1, b"fine", false).await.unwrap();
    assert_eq!(good.recv().await.unwrap().unwrap(), "fine");
}

#[tokio::test]
async fn dropped_request_is_reset_with_refused_stream() {
    let mut test = TestServer::new().await;
    test.connect(1, &[]).await;
    drop(test.request().await);
    let reset = test.peer.next(kind::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code().unwrap()), (1, 7));
}

#[tokio::test]
async fn cancelled_resolves_when_the_client_resets_the_stream() {
    let mut test = TestServer::new().await;
    test.connect(1, &[]).await;
    let (_, mut responder) = test.request().await.into_parts();
    test.peer.reset(1, 8).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), responder.cancelled()).await.unwrap();
    assert!(responder.accept(None).is_err());
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let mut test = TestServer::new().await;
    test.peer.ack_settings().await.unwrap();
    for id in (1..).step_by(2).take(201) {
        test.connect(id, &[]).await;
    }
    let reset = test.peer.next(kind::RST_STREAM).await.unwrap();
    assert_eq!((reset.stream, reset.code().unwrap()), (401, 7));
    assert_eq!(test.requests.len(), 200);
}

#[tokio::test]
async fn drain_answers_every_connect_below_its_last_stream_id() {
    let mut test = TestServer::new().await;
    let mut old = test.accepted(1).await;
    let drain = test.drain.take().unwrap();
    let (finished, drained) = oneshot::channel();
    test.tasks.spawn("drain", async move {
        let _ = finished.send(drain.shutdown(Duration::from_secs(60)).await);
    });
    let first = test.peer.next(kind::GOAWAY).await.unwrap();
    assert_eq!((first.last_stream().unwrap(), first.code().unwrap()), (0x7fff_ffff, 0));
    let ping = test.peer.next(kind::PING).await.unwrap();
    // In flight when the GOAWAY was sent, and the client answers the PING behind it.
    test.connect(3, &[]).await;
    test.peer.send(kind::PING, 1, 0, &ping.payload).await.unwrap();
    let late = test.request().await.accept(None).unwrap();
    let mut answered = false;
    let last = loop {
        let frame = test.peer.next_of_streams().await.unwrap();
        match frame.kind {
            kind::HEADERS => answered = frame.stream == 3,
            kind::GOAWAY => break frame,
            other => panic!("unexpected frame of type {other}"),
        }
    };
    assert_eq!(last.last_stream().unwrap(), 3);
    if !answered {
        assert_eq!(test.peer.next(kind::HEADERS).await.unwrap().stream, 3);
    }
    // Later ones are not processed.
    test.connect(5, &[]).await;
    test.peer.data(1, b"still open", true).await.unwrap();
    assert_eq!(old.recv().await.unwrap().unwrap(), "still open");
    assert!(test.requests.is_empty());
    old.finish().unwrap();
    drop((old, late));
    assert_eq!(test.ended.await.unwrap(), Ok(()));
    assert_eq!(drained.await.unwrap(), Outcome::Drained);
}

#[tokio::test]
async fn connect_in_flight_when_the_drain_begins_is_answered() {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (drain, watch) = drain::channel();
    let settings = Settings::default();
    let mut asked = 0;
    let served = server::serve(ours, &settings, watch, |request| {
        asked += 1;
        request.reject(ConnectStatus::SERVICE_UNAVAILABLE);
    });
    let client = async {
        // Server and drain start before the client sends its preface.
        tokio::task::yield_now().await;
        let mut peer = HbonePeer::client(theirs).await.unwrap();
        let pseudo = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
        peer.headers(1, &pseudo, false).await.unwrap();
        // The answer and the GOAWAY may come in either order; the server closes after both.
        let (mut goaways, mut answered) = (Vec::new(), Vec::new());
        while let Some(frame) = peer.recv().await.unwrap() {
            match frame.kind {
                kind::GOAWAY => goaways.push((frame.last_stream().unwrap(), frame.code().unwrap())),
                kind::HEADERS => answered.push(frame.stream),
                kind::PING if frame.flags & 1 == 0 => {
                    peer.send(kind::PING, 1, 0, &frame.payload).await.unwrap()
                }
                _ => {}
            }
        }
        assert_eq!(goaways, [(0x7fff_ffff, 0), (1, 0)]);
        answered
    };
    let (outcome, ended, answered) = tokio::join!(drain.shutdown(Duration::from_secs(60)), served, client);
    assert_eq!((outcome, ended, answered), (Outcome::Drained, Ok(()), vec![1]));
    assert_eq!(asked, 1);
}

#[tokio::test(start_paused = true)]
async fn forced_drain_ends_at_the_deadline_with_a_goaway() {
    let mut test = TestServer::new().await;
    let mut stream = test.accepted(1).await;
    let drain = test.drain.take().unwrap();
    let (outcome, ended) = tokio::join!(drain.shutdown(Duration::from_secs(5)), test.ended);
    assert_eq!(outcome, Outcome::Forced);
    assert_eq!(ended.unwrap(), Err(TunnelError::Forced));
    assert!(stream.recv().await.unwrap().is_err());
    let rest = test.peer.rest().await.unwrap();
    let goaways = rest.iter().filter(|frame| frame.kind == kind::GOAWAY);
    let last: Vec<_> = goaways.map(|frame| frame.last_stream().unwrap()).collect();
    assert_eq!(last, [0x7fff_ffff, 1]);
}

#[tokio::test(start_paused = true)]
async fn client_without_a_preface_times_out() {
    let (ours, _theirs) = tokio::io::duplex(1024);
    let (_drain, watch) = drain::channel();
    let ended = server::serve(ours, &Settings::default(), watch, |_| {}).await;
    assert_eq!(ended, Err(TunnelError::HandshakeTimeout(Duration::from_secs(10))));
}

#[tokio::test(start_paused = true)]
async fn silent_client_times_out() {
    let test = TestServer::new().await;
    let start = tokio::time::Instant::now();
    let ended = test.ended.await.unwrap();
    assert_eq!(ended, Err(TunnelError::KeepaliveTimeout(Duration::from_secs(20))));
    assert_eq!(start.elapsed().as_secs(), 30);
}
