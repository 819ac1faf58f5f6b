//! The copy between an application's socket and a stream, frame by frame: what either end does, and the frames that
//! result.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;

use std::io::{self, ErrorKind};
use std::sync::Arc;

use isthmus_hbone::copy::{self, CopyOutcome, Side};
use isthmus_hbone::{Settings, Stream, client, server};
use isthmus_kit::hbone::{Frame, HbonePeer, kind};
use isthmus_kit::wait::eventually;
use isthmus_rt::drain::{self, Drain};
use isthmus_rt::task::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use pair::{Counter, head, soon, tcp_pair};

const CANCEL: u32 = 8;
const CONNECT_ERROR: u32 = 10;

/// An application, the copy of its connection to a stream, and a scripted peer at the stream's other end.
struct TestCopy {
    app: TcpStream,
    peer: HbonePeer<DuplexStream>,
    stream: u32,
    ended: oneshot::Receiver<CopyOutcome>,
    counts: Arc<Counter>,
    _tasks: Tasks,
    _drain: Option<Drain>,
}

/// As at the client's agent: the stream is one that we opened.
async fn near() -> TestCopy {
    let tasks = Tasks::new("test");
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let settings = Settings::default();
    let (tunnel, peer) =
        tokio::join!(async { client::start(ours, &settings, &tasks) }, HbonePeer::server(theirs));
    let (tunnel, mut peer, head) = (tunnel.unwrap(), peer.unwrap(), head());
    let answer = async {
        let stream = peer.next(kind::HEADERS).await.unwrap().stream;
        peer.headers(stream, &[(":status", "200")], false).await.unwrap();
        stream
    };
    let (opened, id) = tokio::join!(tunnel.open(&head), answer);
    copied(opened.unwrap().0, peer, id, tasks, None).await
}

/// As at the server's agent: the stream is one that the peer opened.
async fn far() -> TestCopy {
    let tasks = Tasks::new("test");
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (drain, watch) = drain::channel();
    let (hand_out, mut requests) = mpsc::unbounded_channel();
    tasks.spawn("server", async move {
        let settings = Settings::default();
        let _ = server::serve(ours, &settings, watch, |request| hand_out.send(request).unwrap()).await;
    });
    let mut peer = HbonePeer::client(theirs).await.unwrap();
    let pseudo = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
    peer.headers(1, &pseudo, false).await.unwrap();
    let stream = requests.recv().await.unwrap().accept(None).unwrap();
    peer.next(kind::HEADERS).await.unwrap();
    copied(stream, peer, 1, tasks, Some(drain)).await
}

async fn copied(
    ours: Stream,
    peer: HbonePeer<DuplexStream>,
    stream: u32,
    tasks: Tasks,
    drain: Option<Drain>,
) -> TestCopy {
    let (app, tcp) = tcp_pair().await;
    // One turn of the copy reads all that the kernel holds.
    socket2::SockRef::from(&tcp).set_recv_buffer_size(64 * 1024).unwrap();
    let counts = Arc::new(Counter::default());
    let (done, ended) = oneshot::channel();
    let counter = Arc::clone(&counts);
    tasks.spawn("copy", async move {
        let _ = done.send(copy::tunnel(tcp, ours, counter).await);
    });
    TestCopy { app, peer, stream, ended, counts, _tasks: tasks, _drain: drain }
}

impl TestCopy {
    async fn next(&mut self) -> Frame {
        soon(self.peer.next_of_streams()).await.unwrap()
    }

    /// Everything that the application reads, and how it ends.
    async fn rest(&mut self) -> (Vec<u8>, Option<ErrorKind>) {
        let mut all = Vec::new();
        let end: io::Result<usize> = soon(self.app.read_to_end(&mut all)).await;
        (all, end.err().map(|error| error.kind()))
    }

    /// Waits until the copy has passed on so many bytes to the application.
    async fn passed_on(&self, bytes: u64) {
        eventually(
            || self.counts.both().1 >= bytes,
            || format!("{:?} of {bytes} bytes were passed on", self.counts.both()),
        )
        .await;
    }
}

/// A test at both places where a copy runs.
macro_rules! at_both_ends {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[tokio::test]
            async fn near() {
                super::$name(super::near().await).await;
            }

            #[tokio::test]
            async fn far() {
                super::$name(super::far().await).await;
            }
        }
    )*};
}

at_both_ends![
    fin_becomes_end_stream_and_the_other_half_stays_open,
    end_stream_becomes_fin_and_the_other_half_stays_open,
    reset_by_the_application_becomes_connect_error,
    close_with_unread_bytes_becomes_connect_error,
    reset_before_end_stream_becomes_a_reset,
    reset_after_the_applications_fin_becomes_a_reset,
    reset_after_end_stream_keeps_the_answer_complete,
    lost_tunnel_becomes_a_reset,
    fin_with_unread_bytes_is_not_a_reset,
    reset_that_a_write_reported_is_not_an_end,
];

async fn fin_becomes_end_stream_and_the_other_half_stays_open(mut test: TestCopy) {
    test.app.write_all(b"question").await.unwrap();
    test.app.shutdown().await.unwrap();
    let question = test.next().await;
    assert_eq!((question.kind, question.payload.as_slice()), (kind::DATA, &b"question"[..]));
    let end = if question.ends_stream() { question } else { test.next().await };
    assert!(end.kind == kind::DATA && end.ends_stream(), "{end:?}");
    test.peer.data(test.stream, b"answer", false).await.unwrap();
    let mut answer = [0; 6];
    soon(test.app.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"answer");
    test.peer.data(test.stream, b"", true).await.unwrap();
    assert_eq!(test.rest().await, (vec![], None));
    let ended = soon(test.ended).await.unwrap();
    assert_eq!((ended.closed_by, ended.sent, ended.received), (Side::Local, 8, 6));
    assert!(ended.error.is_none(), "{:?}", ended.error);
}

async fn end_stream_becomes_fin_and_the_other_half_stays_open(mut test: TestCopy) {
    test.peer.data(test.stream, b"greeting", true).await.unwrap();
    assert_eq!(test.rest().await, (b"greeting".to_vec(), None));
    test.app.write_all(b"still here").await.unwrap();
    assert_eq!(test.next().await.payload, b"still here");
    test.app.shutdown().await.unwrap();
    assert!(test.next().await.ends_stream());
    let ended = soon(test.ended).await.unwrap();
    assert_eq!(ended.closed_by, Side::Remote);
    assert!(ended.error.is_none(), "{:?}", ended.error);
}

async fn reset_by_the_application_becomes_connect_error(mut test: TestCopy) {
    test.app.write_all(b"x").await.unwrap();
    assert_eq!(test.next().await.payload, b"x");
    test.app.set_zero_linger().unwrap();
    drop(test.app);
    let reset = soon(test.peer.next_of_streams()).await.unwrap();
    assert_eq!((reset.kind, reset.code().unwrap()), (kind::RST_STREAM, CONNECT_ERROR));
    assert_eq!(soon(test.ended).await.unwrap().closed_by, Side::Local);
}

async fn close_with_unread_bytes_becomes_connect_error(test: TestCopy) {
    let TestCopy { app, mut peer, stream, .. } = test;
    peer.data(stream, b"never read", false).await.unwrap();
    app.readable().await.unwrap();
    drop(app);
    let reset = soon(peer.next_of_streams()).await.unwrap();
    assert_eq!((reset.kind, reset.code().unwrap()), (kind::RST_STREAM, CONNECT_ERROR));
}

async fn reset_before_end_stream_becomes_a_reset(mut test: TestCopy) {
    test.peer.data(test.stream, b"half an ans", false).await.unwrap();
    test.passed_on(11).await;
    test.peer.reset(test.stream, CANCEL).await.unwrap();
    assert_eq!(test.rest().await, (b"half an ans".to_vec(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(soon(test.ended).await.unwrap().closed_by, Side::Remote);
}

async fn reset_after_the_applications_fin_becomes_a_reset(mut test: TestCopy) {
    test.app.shutdown().await.unwrap();
    assert!(test.next().await.ends_stream());
    test.peer.data(test.stream, b"half", false).await.unwrap();
    test.passed_on(4).await;
    test.peer.reset(test.stream, CONNECT_ERROR).await.unwrap();
    assert_eq!(test.rest().await, (b"half".to_vec(), Some(ErrorKind::ConnectionReset)));
}

async fn reset_after_end_stream_keeps_the_answer_complete(mut test: TestCopy) {
    // As a server's agent does whose application has answered and closed while the client still sends.
    test.peer.data(test.stream, b"a whole answer", true).await.unwrap();
    test.peer.reset(test.stream, CANCEL).await.unwrap();
    assert_eq!(test.rest().await, (b"a whole answer".to_vec(), None));
}

async fn lost_tunnel_becomes_a_reset(mut test: TestCopy) {
    test.peer.data(test.stream, b"part", false).await.unwrap();
    test.passed_on(4).await;
    let TestCopy { mut app, peer, .. } = test;
    drop(peer);
    let mut all = Vec::new();
    let end = soon(app.read_to_end(&mut all)).await.unwrap_err();
    assert_eq!((all.as_slice(), end.kind()), (&b"part"[..], ErrorKind::ConnectionReset));
}

async fn fin_with_unread_bytes_is_not_a_reset(mut test: TestCopy) {
    test.peer.data(test.stream, b"not read yet", false).await.unwrap();
    test.passed_on(12).await;
    test.app.shutdown().await.unwrap();
    let end = test.next().await;
    assert!(end.kind == kind::DATA && end.ends_stream(), "{end:?}");
    test.peer.data(test.stream, b", and more", true).await.unwrap();
    assert_eq!(test.rest().await, (b"not read yet, and more".to_vec(), None));
    let ended = soon(test.ended).await.unwrap();
    assert!(ended.error.is_none(), "{:?}", ended.error);
}

#[tokio::test]
async fn every_code_before_end_stream_becomes_a_reset() {
    for code in [0, 1, 2, 5, 7, CANCEL, CONNECT_ERROR, 0xdead] {
        let mut test = near().await;
        test.peer.reset(test.stream, code).await.unwrap();
        assert_eq!(test.rest().await, (vec![], Some(ErrorKind::ConnectionReset)), "code {code}");
    }
}

/// A GOAWAY whose last stream id covers the stream does not affect it.
#[tokio::test]
async fn goaway_does_not_end_streams_below_its_last_stream_id() {
    let mut test = near().await;
    test.peer.goaway(test.stream, 0).await.unwrap();
    test.peer.data(test.stream, b"to the end", true).await.unwrap();
    assert_eq!(test.rest().await, (b"to the end".to_vec(), None));
    let mut test = near().await;
    test.peer.goaway(0, 0).await.unwrap();
    assert_eq!(test.rest().await.1, Some(ErrorKind::ConnectionReset), "it was not processed");
}

/// What it sends is discarded for a while, so that it can read the answer; not for as long as it likes.
#[tokio::test]
async fn an_application_that_never_stops_sending_is_reset() {
    const MORE_THAN_BUFFERS: usize = 64 * 1024 * 1024;
    let mut test = near().await;
    test.peer.data(test.stream, b"enough", true).await.unwrap();
    test.peer.reset(test.stream, 0).await.unwrap();
    let mut sent = 0;
    let error = soon(async {
        loop {
            match test.app.write(&[7; 64 * 1024]).await {
                Ok(count) => sent += count,
                Err(error) => return error,
            }
        }
    })
    .await;
    assert!(sent < MORE_THAN_BUFFERS, "{sent} bytes");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

/// The application has closed its socket and the kernel throws away what it had not transmitted, as more data arrived. A
/// socket reports that once: to the write, and what the next read finds looks like an end.
async fn reset_that_a_write_reported_is_not_an_end(mut test: TestCopy) {
    let app = std::mem::replace(&mut test.app, tcp_pair().await.0);
    while let Ok(()) = soon(app.writable()).await
        && app.try_write(&[b'a'; 100_000]).is_ok()
    {}
    drop(app);
    let mut received = 0;
    while received < 65_535 {
        received += test.next().await.payload.len();
    }
    // The first byte makes the kernel reset the connection.
    test.peer.data(test.stream, b"x", false).await.unwrap();
    test.passed_on(1).await;
    // The runtime learns of it with the events of other sockets.
    tcp_pair().await;
    // The write of the second byte is told, and there is credit for all that was transmitted before.
    test.peer.window_update(0, 100_000_000).await.unwrap();
    test.peer.window_update(test.stream, 100_000_000).await.unwrap();
    test.peer.data(test.stream, b"y", false).await.unwrap();
    loop {
        let frame = test.next().await;
        assert!(frame.kind != kind::DATA || !frame.ends_stream(), "an end that is none");
        if frame.kind == kind::RST_STREAM {
            assert_eq!(frame.code().unwrap(), CONNECT_ERROR);
            break;
        }
    }
    assert_eq!(soon(&mut test.ended).await.unwrap().closed_by, Side::Local);
}
