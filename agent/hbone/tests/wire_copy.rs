//! The copy between an application's socket and a stream, frame by frame: what each end of a connection does, and what
//! goes over the wire for it.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;

use std::io::{self, ErrorKind};
use std::sync::Arc;

use isthmus_hbone::copy::{self, Ended, Side};
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
struct World {
    app: TcpStream,
    peer: HbonePeer<DuplexStream>,
    stream: u32,
    ended: oneshot::Receiver<Ended>,
    counts: Arc<Counter>,
    _tasks: Tasks,
    _drain: Option<Drain>,
}

/// As at the client's agent: the stream is one that we opened.
async fn near() -> World {
    let tasks = Tasks::new("test");
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let settings = Settings::default();
    let (tunnel, peer) = tokio::join!(client::handshake(ours, &settings, &tasks), HbonePeer::server(theirs));
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
async fn far() -> World {
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
) -> World {
    let (app, tcp) = tcp_pair().await;
    let counts = Arc::new(Counter::default());
    let (done, ended) = oneshot::channel();
    let counter = Arc::clone(&counts);
    tasks.spawn("copy", async move {
        let _ = done.send(copy::tunnel(tcp, ours, &*counter).await);
    });
    World { app, peer, stream, ended, counts, _tasks: tasks, _drain: drain }
}

impl World {
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
    a_fin_is_end_stream_and_the_other_half_goes_on,
    end_stream_is_a_fin_and_the_other_half_goes_on,
    a_reset_by_the_application_is_connect_error,
    closing_with_unread_bytes_is_connect_error,
    any_reset_before_end_stream_is_a_reset,
    a_reset_behind_the_applications_fin_is_a_reset,
    a_reset_behind_end_stream_leaves_the_answer_whole,
    a_lost_tunnel_is_a_reset,
    a_fin_with_unread_bytes_is_no_reset,
];

async fn a_fin_is_end_stream_and_the_other_half_goes_on(mut world: World) {
    world.app.write_all(b"question").await.unwrap();
    world.app.shutdown().await.unwrap();
    let question = world.next().await;
    assert_eq!((question.kind, question.payload.as_slice()), (kind::DATA, &b"question"[..]));
    let end = if question.ends_stream() { question } else { world.next().await };
    assert!(end.kind == kind::DATA && end.ends_stream(), "{end:?}");
    world.peer.data(world.stream, b"answer", false).await.unwrap();
    let mut answer = [0; 6];
    soon(world.app.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"answer");
    world.peer.data(world.stream, b"", true).await.unwrap();
    assert_eq!(world.rest().await, (vec![], None));
    let ended = soon(world.ended).await.unwrap();
    assert_eq!((ended.closed_by, ended.sent, ended.received), (Side::Local, 8, 6));
    assert!(ended.error.is_none(), "{:?}", ended.error);
}

async fn end_stream_is_a_fin_and_the_other_half_goes_on(mut world: World) {
    world.peer.data(world.stream, b"greeting", true).await.unwrap();
    assert_eq!(world.rest().await, (b"greeting".to_vec(), None));
    world.app.write_all(b"still here").await.unwrap();
    assert_eq!(world.next().await.payload, b"still here");
    world.app.shutdown().await.unwrap();
    assert!(world.next().await.ends_stream());
    let ended = soon(world.ended).await.unwrap();
    assert_eq!(ended.closed_by, Side::Remote);
    assert!(ended.error.is_none(), "{:?}", ended.error);
}

async fn a_reset_by_the_application_is_connect_error(mut world: World) {
    world.app.write_all(b"x").await.unwrap();
    assert_eq!(world.next().await.payload, b"x");
    world.app.set_zero_linger().unwrap();
    drop(world.app);
    let reset = soon(world.peer.next_of_streams()).await.unwrap();
    assert_eq!((reset.kind, reset.code().unwrap()), (kind::RST_STREAM, CONNECT_ERROR));
    assert_eq!(soon(world.ended).await.unwrap().closed_by, Side::Local);
}

async fn closing_with_unread_bytes_is_connect_error(world: World) {
    let World { app, mut peer, stream, .. } = world;
    peer.data(stream, b"never read", false).await.unwrap();
    app.readable().await.unwrap();
    drop(app);
    let reset = soon(peer.next_of_streams()).await.unwrap();
    assert_eq!((reset.kind, reset.code().unwrap()), (kind::RST_STREAM, CONNECT_ERROR));
}

async fn any_reset_before_end_stream_is_a_reset(mut world: World) {
    world.peer.data(world.stream, b"half an ans", false).await.unwrap();
    world.passed_on(11).await;
    world.peer.reset(world.stream, CANCEL).await.unwrap();
    assert_eq!(world.rest().await, (b"half an ans".to_vec(), Some(ErrorKind::ConnectionReset)));
    assert_eq!(soon(world.ended).await.unwrap().closed_by, Side::Remote);
}

async fn a_reset_behind_the_applications_fin_is_a_reset(mut world: World) {
    world.app.shutdown().await.unwrap();
    assert!(world.next().await.ends_stream());
    world.peer.data(world.stream, b"half", false).await.unwrap();
    world.passed_on(4).await;
    world.peer.reset(world.stream, CONNECT_ERROR).await.unwrap();
    assert_eq!(world.rest().await, (b"half".to_vec(), Some(ErrorKind::ConnectionReset)));
}

async fn a_reset_behind_end_stream_leaves_the_answer_whole(mut world: World) {
    // As a server's agent does whose application has answered and closed while the client still sends.
    world.peer.data(world.stream, b"a whole answer", true).await.unwrap();
    world.peer.reset(world.stream, CANCEL).await.unwrap();
    assert_eq!(world.rest().await, (b"a whole answer".to_vec(), None));
}

async fn a_lost_tunnel_is_a_reset(mut world: World) {
    world.peer.data(world.stream, b"part", false).await.unwrap();
    world.passed_on(4).await;
    let World { mut app, peer, .. } = world;
    drop(peer);
    let mut all = Vec::new();
    let end = soon(app.read_to_end(&mut all)).await.unwrap_err();
    assert_eq!((all.as_slice(), end.kind()), (&b"part"[..], ErrorKind::ConnectionReset));
}

async fn a_fin_with_unread_bytes_is_no_reset(mut world: World) {
    world.peer.data(world.stream, b"not read yet", false).await.unwrap();
    world.passed_on(12).await;
    world.app.shutdown().await.unwrap();
    let end = world.next().await;
    assert!(end.kind == kind::DATA && end.ends_stream(), "{end:?}");
    world.peer.data(world.stream, b", and more", true).await.unwrap();
    assert_eq!(world.rest().await, (b"not read yet, and more".to_vec(), None));
    let ended = soon(world.ended).await.unwrap();
    assert!(ended.error.is_none(), "{:?}", ended.error);
}

#[tokio::test]
async fn every_code_is_a_reset_when_it_comes_before_end_stream() {
    for code in [0, 1, 2, 5, 7, CANCEL, CONNECT_ERROR, 0xdead] {
        let mut world = near().await;
        world.peer.reset(world.stream, code).await.unwrap();
        assert_eq!(world.rest().await, (vec![], Some(ErrorKind::ConnectionReset)), "code {code}");
    }
}

/// A GOAWAY that counts the stream leaves it alone; the connection's end before END_STREAM does not.
#[tokio::test]
async fn a_goaway_is_no_end_of_a_stream_that_it_counts() {
    let mut world = near().await;
    world.peer.goaway(world.stream, 0).await.unwrap();
    world.peer.data(world.stream, b"to the end", true).await.unwrap();
    assert_eq!(world.rest().await, (b"to the end".to_vec(), None));
    let mut world = near().await;
    world.peer.goaway(0, 0).await.unwrap();
    assert_eq!(world.rest().await.1, Some(ErrorKind::ConnectionReset), "it was not looked at");
}
