//! Traffic with known bytes: each direction of each stream has its own sequence, and its receiver compares every byte.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isthmus_rt::task::Tasks;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;

/// What a direction of a stream does until the end of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As much as passes.
    Bulk,
    /// One byte at a time.
    Slow,
    /// A megabyte and a half, which is not read before the end.
    Unread,
    /// A few bytes, then its end.
    Over,
    /// A few bytes, and its end at the end of the test.
    Idle,
}

/// Both directions of a stream: from the application, and from the peer.
pub(crate) const SHAPES: [(Pace, Pace); 9] = [
    (Pace::Bulk, Pace::Bulk),
    (Pace::Slow, Pace::Slow),
    (Pace::Unread, Pace::Unread),
    (Pace::Over, Pace::Bulk),
    (Pace::Bulk, Pace::Over),
    (Pace::Idle, Pace::Idle),
    (Pace::Unread, Pace::Slow),
    (Pace::Over, Pace::Unread),
    (Pace::Slow, Pace::Bulk),
];

const UNREAD: u64 = 1_500_000;
/// Bytes of a bulk direction that are on their way at most per step: the test has two cores.
const STEP: Duration = Duration::from_millis(1);

/// A stream's traffic: how many bytes each direction has carried, once all is over.
pub(crate) struct Flow {
    up: oneshot::Receiver<u64>,
    down: oneshot::Receiver<u64>,
}

impl Flow {
    pub(crate) fn start<A, P>(
        app: A,
        peer: P,
        seed: u64,
        shape: (Pace, Pace),
        stop: &Arc<AtomicBool>,
    ) -> (Self, Tasks)
    where
        A: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        P: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let tasks = Tasks::new("flow");
        let (app_read, app_write) = tokio::io::split(app);
        let (peer_read, peer_write) = tokio::io::split(peer);
        let direction = |seed, pace, stop: &Arc<AtomicBool>| (seed, pace, Arc::clone(stop));
        let (up, down) = (direction(2 * seed, shape.0, stop), direction(2 * seed + 1, shape.1, stop));
        tasks.spawn("app", send(app_write, up.clone()));
        tasks.spawn("peer", send(peer_write, down.clone()));
        let (sent, up_total) = oneshot::channel();
        tasks.spawn("peer reads", async move {
            let _ = sent.send(receive(peer_read, up).await);
        });
        let (sent, down_total) = oneshot::channel();
        tasks.spawn("app reads", async move {
            let _ = sent.send(receive(app_read, down).await);
        });
        (Self { up: up_total, down: down_total }, tasks)
    }

    /// Bytes from the application and to it.
    pub(crate) async fn totals(self) -> (u64, u64) {
        (self.up.await.unwrap(), self.down.await.unwrap())
    }
}

type Direction = (u64, Pace, Arc<AtomicBool>);

fn byte(seed: u64, at: u64) -> u8 {
    let mixed = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed.to_be_bytes()[0] ^ mixed.to_be_bytes()[4]
}

async fn send(mut to: impl AsyncWrite + Unpin, (seed, pace, stop): Direction) {
    let mut at = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        let now = match pace {
            Pace::Bulk if stopped => 0,
            Pace::Bulk => 1 + usize::from(byte(seed, at)) * 64,
            Pace::Slow => usize::from(!stopped),
            Pace::Unread => usize::try_from((UNREAD - at).min(16_000)).unwrap(),
            Pace::Over | Pace::Idle => usize::try_from(20 - at.min(20)).unwrap(),
        };
        if now == 0 && (pace != Pace::Idle || stopped) {
            break;
        }
        for (byte_at, to) in (at..).zip(&mut buffer[..now]) {
            *to = byte(seed, byte_at);
        }
        to.write_all(&buffer[..now]).await.unwrap_or_else(|error| panic!("{seed} {pace:?} at {at}: {error}"));
        at += u64::try_from(now).unwrap();
        match pace {
            Pace::Bulk => tokio::time::sleep(STEP).await,
            Pace::Slow | Pace::Idle => tokio::time::sleep(Duration::from_millis(50)).await,
            Pace::Unread | Pace::Over => {}
        }
    }
    to.shutdown().await.unwrap_or_else(|error| panic!("{seed} {pace:?} at the end: {error}"));
}

async fn receive(mut from: impl AsyncRead + Unpin, (seed, pace, stop): Direction) -> u64 {
    let (mut at, mut buffer) = (0, vec![0; 16 * 1024]);
    while pace == Pace::Unread && !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    loop {
        let count =
            from.read(&mut buffer).await.unwrap_or_else(|error| panic!("{seed} {pace:?} at {at}: {error}"));
        if count == 0 {
            let least = if pace == Pace::Unread { UNREAD } else { 0 };
            assert!(at >= least, "{seed} {pace:?} ended after {at} bytes");
            return at;
        }
        for got in &buffer[..count] {
            assert_eq!(*got, byte(seed, at), "{seed} {pace:?}: byte {at}");
            at += 1;
        }
    }
}
