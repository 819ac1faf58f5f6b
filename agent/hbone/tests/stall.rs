//! Streams whose applications do not read do not stop other streams.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;

use std::pin::pin;
use std::time::Duration;

use isthmus_hbone::{Settings, Stream};

use pair::{Pair, soon};

const WINDOW: usize = 64 * 1024;

/// The default ratio at a smaller size: one stream window for every stream.
fn small() -> Settings {
    Settings {
        stream_window: u32::try_from(WINDOW).unwrap(),
        connection_window: u32::try_from(100 * WINDOW).unwrap(),
        ..Settings::default()
    }
}

/// Fills a stream until it has no capacity left.
async fn fill(stream: &mut Stream) {
    let more = async {
        loop {
            stream.send(&vec![0; 16 * 1024]).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), more).await.is_err());
}

/// Sends `n` bytes and reads them at the other end.
async fn pass(near: &mut Stream, far: &mut Stream, n: usize) {
    let mut left = n;
    let send = async {
        for _ in 0..n / 10_000 {
            near.send(&vec![1; 10_000]).await.unwrap();
        }
    };
    let recv = async {
        while left > 0 {
            let data = far.recv().await.unwrap().unwrap();
            far.release(data.len());
            left -= data.len();
        }
    };
    soon(async { tokio::join!(send, recv) }).await;
}

#[tokio::test(start_paused = true)]
async fn stalled_streams_do_not_stop_the_last_one() {
    let mut pair = Pair::in_memory(small()).await;
    let mut stalled = Vec::new();
    for _ in 0..99 {
        let (mut near, far) = pair.stream().await;
        fill(&mut near).await;
        stalled.push((near, far));
    }
    let (mut near, mut far) = pair.stream().await;
    pass(&mut near, &mut far, 2_000_000).await;
    // Towards the client the same.
    for (_, far) in &mut stalled {
        fill(far).await;
    }
    pass(&mut far, &mut near, 2_000_000).await;
}

#[tokio::test(start_paused = true)]
async fn stalled_streams_with_default_windows_do_not_stop_another() {
    let mut pair = Pair::in_memory(Settings::default()).await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let (mut near, mut far) = pair.stream().await;
        fill(&mut near).await;
        fill(&mut far).await;
        stalled.push((near, far));
    }
    let (mut near, mut far) = pair.stream().await;
    pass(&mut near, &mut far, 20_000_000).await;
    pass(&mut far, &mut near, 20_000_000).await;
}

#[tokio::test(start_paused = true)]
async fn connection_window_of_few_stream_windows_would_stall() {
    // The control experiment: the two tests above pass because of the settings.
    let settings = Settings { connection_window: u32::try_from(3 * WINDOW).unwrap(), ..small() };
    let mut pair = Pair::in_memory(settings).await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let (mut near, far) = pair.stream().await;
        fill(&mut near).await;
        stalled.push((near, far));
    }
    let (mut near, mut far) = pair.stream().await;
    let mut pass = pin!(async {
        near.send(b"x").await.unwrap();
        far.recv().await.unwrap().unwrap()
    });
    assert!(tokio::time::timeout(Duration::from_secs(5), &mut pass).await.is_err());
    // The credit of a dropped stream returns to the others.
    stalled.clear();
    assert_eq!(soon(pass).await, "x");
}

#[tokio::test(start_paused = true)]
async fn unreleased_credit_returns_when_the_stream_is_dropped() {
    let settings = Settings { connection_window: u32::try_from(2 * WINDOW).unwrap(), ..small() };
    let mut pair = Pair::in_memory(settings).await;
    for _ in 0..10 {
        let (mut near, mut far) = pair.stream().await;
        near.send(&vec![0; WINDOW]).await.unwrap();
        let mut left = WINDOW;
        while left > 0 {
            left -= soon(far.recv()).await.unwrap().unwrap().len();
        }
    }
}
