//! Streams whose applications do not read do not stop other streams.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

#[path = "support/pair.rs"]
mod pair;

use std::pin::pin;
use std::time::Duration;

use isthmus_hbone::{MemoryBudget, Settings, Stream};

use pair::{Pair, soon};

const WINDOW: usize = 64 * 1024;

const MIB: usize = 1024 * 1024;

/// Windows that do not grow, and a budget of memory.
fn limited(memory: &MemoryBudget) -> Settings {
    let window = u32::try_from(WINDOW).unwrap();
    Settings {
        stream_window: window,
        max_stream_window: window,
        connection_window: window,
        memory: memory.clone(),
        ..Settings::default()
    }
}

/// Fills a stream until it has no capacity left; returns how many bytes it took.
async fn fill(stream: &mut Stream) -> usize {
    let mut sent = 0;
    let more = async {
        loop {
            stream.send(&[0; 1024]).await.unwrap();
            sent += 1024;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), more).await.is_err());
    sent
}

async fn until(done: impl Fn() -> bool) {
    soon(async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
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
    let mut pair = Pair::in_memory(limited(&MemoryBudget::unlimited())).await;
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
async fn a_spent_budget_gives_no_more_credit_and_loses_no_byte() {
    let process = MemoryBudget::new(8 * MIB);
    let pod = process.within(MIB);
    let mut pairs = Vec::new();
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut pair = Pair::in_memory(limited(&pod)).await;
        for _ in 0..20 {
            let (mut near, far) = pair.stream().await;
            let sent = fill(&mut near).await;
            stalled.push((near, far, sent));
        }
        pairs.push(pair);
    }
    let all: usize = stalled.iter().map(|(_, _, sent)| sent).sum();
    // What waits to be written at the sender's end counts as well; both ends are of this pod.
    assert!(all < 4 * MIB, "{all} bytes were accepted with {pod:?}");
    assert!(pod.used() <= pod.limit() && pod.refusals() > 0, "{pod:?}");
    // Another pod of the process notices nothing.
    let other = process.within(4 * MIB);
    let mut victim = Pair::in_memory(limited(&other)).await;
    let (mut near, mut far) = victim.stream().await;
    pass(&mut near, &mut far, 2_000_000).await;
    // Nothing is lost, and the credit comes back.
    for (_, far, sent) in &mut stalled {
        let mut received = 0;
        while let Ok(data) = tokio::time::timeout(Duration::from_secs(1), far.recv()).await {
            let data = data.unwrap().unwrap();
            far.release(data.len());
            received += data.len();
        }
        assert!((*sent..*sent + 1024).contains(&received), "{received} of {sent} bytes");
    }
    let (near, far, _) = stalled.last_mut().unwrap();
    pass(near, far, 2_000_000).await;
    drop((stalled, pairs));
    until(|| pod.used() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn stalled_streams_stop_the_others_of_their_tunnel_only_when_the_budget_is_spent() {
    // The control experiment of the tests above: it is the budget that keeps the others going.
    let pod = MemoryBudget::new(8 * MIB).within(4 * WINDOW);
    let mut pair = Pair::in_memory(limited(&pod)).await;
    let mut stalled = Vec::new();
    for _ in 0..6 {
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
async fn an_idle_tunnel_is_closed_when_what_its_peer_was_given_is_needed() {
    let pod = MemoryBudget::new(8 * MIB).within(2 * MIB);
    let mut pair = Pair::in_memory(Settings { memory: pod.clone(), ..Settings::default() }).await;
    let (mut near, mut far) = pair.stream().await;
    pass(&mut near, &mut far, 2_000_000).await;
    assert!(pod.used() > 2 * MIB / 4, "the windows have grown: {pod:?}");
    drop((near, far));
    let stuck = pod.within(usize::MAX);
    // Less is left than an eighth.
    let mut other = Pair::in_memory(limited(&stuck)).await;
    let mut stalled = Vec::new();
    while pod.used() < 2 * MIB / 8 * 7 && stalled.len() < 60 {
        let (mut near, far) = other.stream().await;
        fill(&mut near).await;
        stalled.push((near, far));
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!pair.tunnel.is_alive() || !pod.is_tight(), "{pod:?}");
}

#[tokio::test(start_paused = true)]
async fn unreleased_credit_returns_when_the_stream_is_dropped() {
    let pod = MemoryBudget::new(MIB).within(MIB / 2);
    let settings = Settings { connection_window: u32::try_from(2 * WINDOW).unwrap(), ..limited(&pod) };
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
