//! How the end of a stream reaches the application, and the end of the application's connection the stream.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use isthmus_hbone::copy::{self, CopyError, CopyOutcome, PlainControl, Side};
use isthmus_hbone::{Reason, Stream, StreamError};
use isthmus_kit::wait::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use pair::{Counter, Pair, soon, tcp_pair};

/// An application whose connection is copied to a stream, and the peer's end of the stream.
struct Copied {
    app: TcpStream,
    far: Stream,
    ended: oneshot::Receiver<CopyOutcome>,
    counts: Arc<Counter>,
    copy: AbortHandle,
    pair: Pair,
}

async fn copied() -> Copied {
    let mut pair = Pair::new().await;
    let (near, far) = pair.stream().await;
    let (app, ours) = tcp_pair().await;
    let counts = Arc::new(Counter::default());
    let (done, ended) = oneshot::channel();
    let counter = Arc::clone(&counts);
    let copy = pair.tasks.spawn("copy", async move {
        let _ = done.send(copy::tunnel(ours, near, counter).await);
    });
    Copied { app, far, ended, counts, copy, pair }
}

async fn read_all(stream: &mut Stream) -> Result<Vec<u8>, StreamError> {
    let mut all = Vec::new();
    while let Some(data) = stream.recv().await {
        let data = data?;
        stream.release(data.len());
        all.extend(&data);
    }
    Ok(all)
}

fn reset_on_close(tcp: &TcpStream) {
    tcp.set_zero_linger().unwrap();
}

async fn assert_reset(app: &mut TcpStream) {
    let mut rest = Vec::new();
    let error = soon(app.read_to_end(&mut rest)).await.expect_err("a clean end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn directions_end_independently() {
    let Copied { mut app, mut far, ended, counts, pair: _pair, .. } = copied().await;
    app.write_all(b"request").await.unwrap();
    app.shutdown().await.unwrap();
    assert_eq!(soon(read_all(&mut far)).await.unwrap(), b"request");
    assert_eq!(counts.both(), (7, 0));
    far.send(b"an answer").await.unwrap();
    let mut answer = [0; 9];
    soon(app.read_exact(&mut answer)).await.unwrap();
    assert_eq!((&answer, counts.both()), (b"an answer", (7, 9)));
    far.finish().unwrap();
    assert_eq!(soon(app.read(&mut answer)).await.unwrap(), 0);
    let ended = soon(ended).await.unwrap();
    assert_eq!((ended.sent, ended.received, ended.closed_by), (7, 9, Side::Local));
    assert!(ended.error.is_none(), "{:?}", ended.error);
}

#[tokio::test]
async fn peer_may_close_first() {
    let Copied { mut app, mut far, ended, pair: _pair, .. } = copied().await;
    far.send(b"greeting").await.unwrap();
    far.finish().unwrap();
    let mut greeting = String::new();
    soon(app.read_to_string(&mut greeting)).await.unwrap();
    assert_eq!(greeting, "greeting");
    app.write_all(b"still talking").await.unwrap();
    drop(app);
    assert_eq!(soon(read_all(&mut far)).await.unwrap(), b"still talking");
    let ended = soon(ended).await.unwrap();
    assert_eq!((ended.closed_by, ended.error.is_none()), (Side::Remote, true));
}

#[tokio::test]
async fn small_writes_are_merged_into_few_frames() {
    let Copied { mut app, mut far, ended, pair: _pair, .. } = copied().await;
    let write = async {
        for n in 0..40_000u32 {
            app.write_all(&[n.to_le_bytes()[0]]).await.unwrap();
        }
        app.shutdown().await.unwrap();
    };
    let read = async {
        let (mut all, mut frames) = (Vec::<u8>::new(), 0);
        while let Some(data) = far.recv().await {
            let data = data.unwrap();
            far.release(data.len());
            all.extend(&data);
            frames += 1;
        }
        (all, frames)
    };
    let ((), (all, frames)) = soon(async { tokio::join!(write, read) }).await;
    assert!(all.into_iter().eq((0..40_000u32).map(|n| n.to_le_bytes()[0])));
    assert!(frames < 20_000, "{frames} frames");
    far.finish().unwrap();
    assert_eq!(soon(ended).await.unwrap().sent, 40_000);
}

#[tokio::test]
async fn unread_one_byte_frames_are_within_the_budget() {
    let mut pair = Pair::new().await;
    let (mut near, mut far) = pair.stream().await;
    for n in 0..40_000u32 {
        soon(near.send(&[n.to_le_bytes()[0]])).await.unwrap();
    }
    near.finish().unwrap();
    let all = soon(read_all(&mut far)).await.unwrap();
    assert!(all.into_iter().eq((0..40_000u32).map(|n| n.to_le_bytes()[0])));
}

#[tokio::test]
async fn bulk_data_flows_in_both_directions_at_once() {
    let Copied { app, far, ended, pair: _pair, .. } = copied().await;
    let up: Vec<u8> = (0..8_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    let down: Vec<u8> = (0..9_000_000u32).map(|n| n.to_le_bytes()[2]).collect();
    let (mut read, mut write) = app.into_split();
    let (mut recv, mut send) = far.split();
    let received = async {
        let mut all = Vec::<u8>::new();
        while let Some(data) = recv.recv().await {
            let data = data.unwrap();
            recv.release(data.len());
            all.extend(&data);
        }
        all
    };
    let sent = async {
        for piece in down.chunks(300_000) {
            send.send(piece).await.unwrap();
        }
        send.finish().unwrap();
    };
    let wrote = async {
        write.write_all(&up).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let all = async { tokio::join!(received, sent, wrote, read.read_to_end(&mut got)) };
    let (received, (), (), n) = soon(all).await;
    n.unwrap();
    assert!(received == up && got == down);
    let ended = soon(ended).await.unwrap();
    assert_eq!((ended.sent, ended.received), (8_000_000, 9_000_000));
}

#[tokio::test]
async fn reset_by_the_application_becomes_connect_error() {
    let Copied { mut app, mut far, ended, pair: _pair, .. } = copied().await;
    app.write_all(b"x").await.unwrap();
    assert_eq!(soon(far.recv()).await.unwrap().unwrap(), "x");
    reset_on_close(&app);
    drop(app);
    let error = soon(read_all(&mut far)).await.unwrap_err();
    assert_eq!(error, StreamError::Reset(Reason::CONNECT_ERROR));
    let ended = soon(ended).await.unwrap();
    assert_eq!(ended.closed_by, Side::Local);
    assert!(matches!(ended.error, Some(CopyError::Tcp { side: Side::Local, .. })), "{:?}", ended.error);
}

#[tokio::test]
async fn close_with_unread_data_becomes_connect_error() {
    let Copied { app, mut far, pair: _pair, .. } = copied().await;
    far.send(b"never read").await.unwrap();
    app.readable().await.unwrap();
    drop(app);
    let error = soon(read_all(&mut far)).await.unwrap_err();
    assert_eq!(error, StreamError::Reset(Reason::CONNECT_ERROR));
}

#[tokio::test]
async fn reset_before_end_stream_resets_the_application() {
    for reason in [Reason::CANCEL, Reason::CONNECT_ERROR, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let Copied { mut app, mut far, ended, pair: _pair, .. } = copied().await;
        far.send(b"part").await.unwrap();
        let mut part = [0; 4];
        soon(app.read_exact(&mut part)).await.unwrap();
        far.reset(reason);
        assert_reset(&mut app).await;
        let ended = soon(ended).await.unwrap();
        assert_eq!((ended.closed_by, ended.received), (Side::Remote, 4));
        assert!(
            matches!(ended.error, Some(CopyError::Stream(StreamError::Reset(code))) if code == reason),
            "{:?}",
            ended.error
        );
    }
}

#[tokio::test]
async fn reset_reaches_an_application_that_sent_its_fin_and_does_not_read() {
    let Copied { mut app, mut far, ended, pair: _pair, .. } = copied().await;
    app.shutdown().await.unwrap();
    assert!(soon(far.recv()).await.is_none());
    // More than all buffers between hold: the copy waits for the application.
    let stuck = async {
        loop {
            far.send(&vec![0; 1 << 20]).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(500), stuck).await.is_err());
    far.reset(Reason::CANCEL);
    let ended = soon(ended).await.unwrap();
    assert!(matches!(ended.error, Some(CopyError::Stream(_))), "{:?}", ended.error);
    assert_reset(&mut app).await;
}

#[tokio::test]
async fn lost_tunnel_resets_the_application() {
    let Copied { mut app, far, ended, pair, .. } = copied().await;
    let killed = pair.drain.kill();
    let (outcome, ()) = soon(async { tokio::join!(killed, assert_reset(&mut app)) }).await;
    assert_eq!(outcome, isthmus_rt::drain::Outcome::Forced);
    drop(far);
    assert!(matches!(soon(ended).await.unwrap().error, Some(CopyError::Stream(StreamError::Lost(_)))));
}

#[tokio::test]
async fn dropped_copy_resets_both_sides() {
    let Copied { mut app, mut far, copy, pair: _pair, .. } = copied().await;
    app.write_all(b"x").await.unwrap();
    assert_eq!(soon(far.recv()).await.unwrap().unwrap(), "x");
    copy.abort();
    assert_reset(&mut app).await;
    assert_eq!(soon(far.recv()).await.unwrap().unwrap_err(), StreamError::Reset(Reason::CANCEL));
}

/// A client's application and a server's, with a tunnel between.
struct Between {
    client: TcpStream,
    server: TcpStream,
    client_ended: oneshot::Receiver<CopyOutcome>,
    server_ended: oneshot::Receiver<CopyOutcome>,
    /// What the server's copy has passed on.
    counts: Arc<Counter>,
    _pair: Pair,
}

async fn between() -> Between {
    let mut pair = Pair::new().await;
    let (near, far) = pair.stream().await;
    let (client, ours) = tcp_pair().await;
    let (theirs, server) = tcp_pair().await;
    let (done, client_ended) = oneshot::channel();
    pair.tasks.spawn("client's copy", async move {
        let _ = done.send(copy::tunnel(ours, near, Arc::new(())).await);
    });
    let (done, server_ended) = oneshot::channel();
    let counts = Arc::new(Counter::default());
    let counter = Arc::clone(&counts);
    pair.tasks.spawn("server's copy", async move {
        let _ = done.send(copy::tunnel(theirs, far, counter).await);
    });
    Between { client, server, client_ended, server_ended, counts, _pair: pair }
}

/// The client keeps sending to a server that has answered and closed. A socket reports a reset once, which may be here.
async fn keep_sending(client: &mut TcpStream) -> std::io::Result<()> {
    for _ in 0..50 {
        client.write_all(&[b'c'; 1000]).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

#[tokio::test]
async fn answer_is_complete_when_the_server_closes_before_the_client_has_sent_all() {
    let mut all = between().await;
    let answer = vec![b'a'; 2_000_000];
    all.server.write_all(&answer).await.unwrap();
    drop(all.server);
    // The answer and its FIN have come as far as the copy; the client has read nothing yet.
    eventually(
        || all.counts.both().0 >= 2_000_000,
        || format!("the answer is not copied: {:?}", all.counts.both()),
    )
    .await;
    keep_sending(&mut all.client).await.unwrap();
    let ended = soon(all.server_ended).await.unwrap();
    assert!(ended.error.is_none(), "{:?}", ended.error);
    let mut got = Vec::new();
    soon(all.client.read_to_end(&mut got)).await.expect("a complete answer does not end with a reset");
    assert!(got == answer, "{} bytes", got.len());
    drop(all.client);
    let ended = soon(all.client_ended).await.unwrap();
    assert_eq!((ended.closed_by, ended.received), (Side::Remote, 2_000_000));
}

/// When a closed socket receives more data, the kernel discards what it had not transmitted yet. The answer is truncated,
/// as it would be without a tunnel, but must not look complete.
#[tokio::test]
async fn truncated_answer_never_looks_complete() {
    let mut truncated = 0;
    for round in 0..20 {
        let mut all = between().await;
        all.server.write_all(&vec![b'a'; 2_000_000]).await.unwrap();
        drop(all.server);
        let wrote = keep_sending(&mut all.client).await;
        let mut got = Vec::new();
        let end = wrote.and(soon(all.client.read_to_end(&mut got)).await);
        assert!(
            end.is_err() || got.len() == 2_000_000,
            "round {round}: a clean end after {} bytes",
            got.len()
        );
        truncated += usize::from(end.is_err());
    }
    println!("{truncated} of 20 were truncated and told so");
}

#[tokio::test]
async fn plain_copy_ends_one_direction_at_a_time() {
    let (mut client, ours) = tcp_pair().await;
    let (theirs, mut server) = tcp_pair().await;
    let counts = Counter::default();
    let talk = async {
        client.write_all(b"request").await.unwrap();
        client.shutdown().await.unwrap();
        let mut request = String::new();
        server.read_to_string(&mut request).await.unwrap();
        assert_eq!(request, "request");
        server.write_all(&vec![1; 3_000_000]).await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), 3_000_000);
    };
    let control = PlainControl::default();
    let (ended, ()) = soon(async { tokio::join!(copy::plain(ours, theirs, &counts, &control), talk) }).await;
    assert_eq!((ended.sent, ended.received, ended.closed_by), (7, 3_000_000, Side::Local));
    assert!(ended.error.is_none());
    assert_eq!(counts.both(), (7, 3_000_000));
}

#[tokio::test]
async fn plain_copy_passes_on_resets_in_both_directions() {
    for reset_by in [Side::Local, Side::Remote] {
        let (local, ours) = tcp_pair().await;
        let (theirs, remote) = tcp_pair().await;
        let (breaks, mut sees) = if reset_by == Side::Local { (local, remote) } else { (remote, local) };
        reset_on_close(&breaks);
        let broken = async {
            drop(breaks);
            assert_reset(&mut sees).await;
        };
        let control = PlainControl::default();
        let (ended, ()) =
            soon(async { tokio::join!(copy::plain(ours, theirs, &(), &control), broken) }).await;
        assert_eq!(ended.closed_by, reset_by);
        assert!(matches!(ended.error, Some(CopyError::Tcp { side, .. }) if side == reset_by));
    }
}

#[tokio::test]
async fn dropped_plain_copy_resets_both_sides() {
    let (mut local, ours) = tcp_pair().await;
    let (theirs, mut remote) = tcp_pair().await;
    local.write_all(b"x").await.unwrap();
    let mut byte = [0];
    let seen = async { remote.read_exact(&mut byte).await.unwrap() };
    let control = PlainControl::default();
    tokio::select! {
        ended = copy::plain(ours, theirs, &(), &control) => panic!("{ended:?}"),
        _ = seen => {}
    }
    assert_reset(&mut local).await;
    assert_reset(&mut remote).await;
}

/// Every open connection holds one.
#[tokio::test]
async fn copy_future_is_small() {
    let mut pair = Pair::new().await;
    let (near, far) = pair.stream().await;
    let (local, remote) = tcp_pair().await;
    let tunnel = copy::tunnel(local, near, Arc::new(()));
    let size = size_of_val(&tunnel);
    assert!(size < 1200, "tunnel: {size} bytes");
    drop((tunnel, far));
    let (other, _) = tcp_pair().await;
    let control = PlainControl::default();
    let plain = copy::plain(remote, other, &(), &control);
    let size = size_of_val(&plain);
    assert!(size < 1200, "plain: {size} bytes");
}

/// Stopped again and again while both directions carry data, and at their ends.
#[tokio::test]
async fn plain_copy_goes_on_after_it_was_taken_apart() {
    use isthmus_hbone::handover::{decode_plain, encode_plain};
    let (mut client, ours) = tcp_pair().await;
    let (theirs, mut server) = tcp_pair().await;
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let (sent, received) = (data.clone(), data.clone());
    let talk = async move {
        let (mut down, mut up) = client.split();
        let (mut from, mut to) = server.split();
        let (mut request, mut answer) = (Vec::new(), Vec::new());
        let send = async {
            up.write_all(&sent).await.unwrap();
            up.shutdown().await.unwrap();
        };
        let reply = async {
            from.read_to_end(&mut request).await.unwrap();
            to.write_all(&received).await.unwrap();
            to.shutdown().await.unwrap();
        };
        tokio::join!(send, reply, async { down.read_to_end(&mut answer).await.unwrap() });
        assert!(request == data && answer == data, "{} and {} bytes", request.len(), answer.len());
    };
    let copy = async {
        let mut control = PlainControl::default();
        let first = control.clone();
        let mut run: Pin<Box<dyn Future<Output = CopyOutcome>>> =
            Box::pin(async move { copy::plain(ours, theirs, &(), &first).await });
        for stops in 0.. {
            let parts = async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                control.take_apart().await
            };
            let (parts, ended) = tokio::join!(parts, &mut run);
            let Ok(parts) = parts else {
                assert!(ended.error.is_none() && stops > 0, "{ended:?} after {stops}");
                return assert_eq!((ended.sent, ended.received), (3_000_000, 3_000_000));
            };
            assert!(ended.is_handed_over(), "{ended:?}");
            let parts = decode_plain(encode_plain(parts).unwrap().into()).unwrap();
            control = PlainControl::default();
            let next = control.clone();
            run = Box::pin(async move { copy::resume_plain(parts, &(), &next).await.unwrap() });
        }
    };
    soon(async { tokio::join!(talk, copy) }).await;
}
