//! Attacks by a peer with a certificate of the mesh on a pod of the agent's node.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isthmus_identity::{Manager, fake::FakeSigner, manager};
use isthmus_kit::hbone::{flag, kind};
use isthmus_kit::lab;
use isthmus_rt::task::Tasks;

use crate::world::{Cue, DEAF, ECHO, Peer, SOURCE, Session, World};

/// Long enough for a step to be done, short enough to be stuck for.
const STUCK: Duration = Duration::from_millis(200);

async fn open(session: &mut Session, stream: u32, to: &str) -> Result<()> {
    session.headers(stream, &[(":method", "CONNECT"), (":authority", to)], false).await
}

/// Whether the connection was ended with a GOAWAY of this code; reads until then.
async fn goaway(session: &mut Session) -> Result<u32> {
    let next = tokio::time::timeout(Duration::from_secs(10), session.next(kind::GOAWAY));
    let frame = next.await.context("no GOAWAY in time")??;
    Ok(u32::from_be_bytes(frame.payload[4..8].try_into()?))
}

const ENHANCE_YOUR_CALM: u32 = 11;

fn certificates(tasks: &Tasks) -> Manager {
    Manager::new(Arc::new(FakeSigner::new()), manager::Config::default(), tasks)
}

/// Sends as much as each stream and the connection have credit for, from the beginning and after each WINDOW_UPDATE.
async fn flood(session: &mut Session, streams: u32, piece: usize, to: &str) -> Result<()> {
    session.ack_settings().await?;
    for number in 0..streams {
        open(session, 2 * number + 1, to).await?;
    }
    let (mut connection, mut credit) = (65_535_i64, vec![65_536_i64; streams as usize]);
    let mut unanswered = streams;
    let payload = vec![0; piece];
    loop {
        while let Ok(frame) = tokio::time::timeout(STUCK, session.recv()).await {
            let Some(frame) = frame? else { return Ok(()) };
            let increment =
                || i64::from(u32::from_be_bytes(frame.payload[..4].try_into().unwrap_or_default()));
            match (frame.kind, frame.stream) {
                (kind::WINDOW_UPDATE, 0) => connection += increment(),
                (kind::WINDOW_UPDATE, stream) => credit[stream as usize / 2] += increment(),
                (kind::HEADERS, _) => unanswered -= 1,
                (kind::GOAWAY, _) => return Ok(()),
                _ => continue,
            }
            if unanswered == 0 && connection > 0 {
                break;
            }
        }
        let before = connection;
        let size = i64::try_from(piece)?;
        for (number, credit) in credit.iter_mut().enumerate() {
            while *credit >= size && connection >= size {
                session.data(2 * u32::try_from(number)? + 1, &payload, false).await?;
                *credit -= size;
                connection -= size;
            }
        }
        if before == connection {
            return Ok(());
        }
    }
}

/// Runs a number of sessions one after the other, and holds all of them.
async fn sessions(peer: &Peer, number: usize, streams: u32, piece: usize, to: &str) -> Result<Vec<Session>> {
    let tasks = Tasks::new("peer");
    let certs = certificates(&tasks);
    let mut all = Vec::new();
    for _ in 0..number {
        let mut session = peer.connect_as(&certs).await?;
        flood(&mut session, streams, piece, to).await?;
        all.push(session);
    }
    Ok(all)
}

pub(crate) fn data_for_an_application_that_does_not_read_is_bounded() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        world.applications()?;
        let (peer, to) = (world.peer(), world.server(DEAF).to_string());
        let attack = move |cue: Cue| async move {
            let held = sessions(&peer, 3, 200, 16 * 1024, &to).await?;
            cue.hold().await;
            drop(held);
            Ok(())
        };
        world.judge(1, attack).await
    })
}

pub(crate) fn single_bytes_cost_no_buffer_each() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        world.applications()?;
        let (peer, to) = (world.peer(), world.server(DEAF).to_string());
        let attack = move |cue: Cue| async move {
            let held = sessions(&peer, 2, 2, 1, &to).await?;
            cue.hold().await;
            drop(held);
            Ok(())
        };
        world.judge(1, attack).await
    })
}

pub(crate) fn a_peer_that_stops_reading_tcp_holds_a_bounded_amount() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        world.applications()?;
        let (peer, to) = (world.peer(), world.server(SOURCE).to_string());
        let attack = move |cue: Cue| async move {
            let tasks = Tasks::new("peer");
            let (certs, mut all) = (certificates(&tasks), Vec::new());
            for _ in 0..150 {
                let mut session = peer.connect_as(&certs).await?;
                session.ack_settings().await?;
                session.window_update(0, 1 << 30).await?;
                for stream in [1, 3] {
                    open(&mut session, stream, &to).await?;
                }
                all.push(session);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            cue.hold().await;
            Ok(())
        };
        world.judge(1, attack).await
    })
}

pub(crate) fn streams_that_end_and_are_reset_keep_their_slots() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        world.applications()?;
        let (peer, to, pid) = (world.peer(), world.server(DEAF).to_string(), world.agents[1].pid());
        let attack = move |cue: Cue| async move {
            let tasks = Tasks::new("peer");
            let mut session = peer.connect(&tasks).await?;
            session.ack_settings().await?;
            let (start, before, mut most) = (Instant::now(), World::descriptors(pid)?, 0);
            let mut stream = 1;
            while start.elapsed() < Duration::from_secs(2) {
                let burst = async {
                    for _ in 0..16 {
                        open(&mut session, stream, &to).await?;
                        session.send(kind::DATA, flag::END_STREAM, stream, &[]).await?;
                        session.reset(stream, 0).await?;
                        stream += 2;
                    }
                    anyhow::Ok(())
                };
                if burst.await.is_err() {
                    break;
                }
                most = most.max(World::descriptors(pid)?.saturating_sub(before));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            eprintln!("{} streams, {most} more descriptors at most", stream / 2);
            ensure!(most <= 1000, "{most} more descriptors than before");
            cue.hold().await;
            Ok(())
        };
        world.judge(1, attack).await
    })
}

pub(crate) fn a_dial_for_each_reset_stream_ends_with_a_goaway() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        let (peer, to) = (world.peer(), world.server(ECHO).to_string());
        let attack = move |cue: Cue| async move {
            let tasks = Tasks::new("peer");
            let mut session = peer.connect(&tasks).await?;
            session.ack_settings().await?;
            let start = Instant::now();
            for stream in (1..).step_by(2) {
                // 6,400 a second.
                if stream % 64 == 1 {
                    let due = Duration::from_micros(u64::from(stream / 2) * 156);
                    tokio::time::sleep(due.saturating_sub(start.elapsed())).await;
                }
                let sent = async {
                    open(&mut session, stream, &to).await?;
                    session.reset(stream, 8).await
                };
                if sent.await.is_err() || start.elapsed() > Duration::from_secs(5) {
                    break;
                }
            }
            eprintln!("the attack lasted {:?}", start.elapsed());
            ensure!(start.elapsed() < Duration::from_secs(5), "it was not cut off");
            cue.hold().await;
            Ok(())
        };
        world.judge(1, attack).await
    })
}

pub(crate) fn idle_tunnels_of_one_peer_are_closed() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        let peer = world.peer();
        let attack = move |cue: Cue| async move {
            let tasks = Tasks::new("peer");
            let (certs, mut all) = (certificates(&tasks), Vec::new());
            for _ in 0..200 {
                let mut session = peer.connect_as(&certs).await?;
                session.ack_settings().await?;
                all.push(session);
            }
            cue.hold().await;
            // The first one is told to go although it answers.
            let start = Instant::now();
            loop {
                let session = &mut all[0];
                let frame = tokio::time::timeout(Duration::from_secs(40), session.recv()).await;
                let frame = frame.context("an idle tunnel was kept")??.context("no GOAWAY")?;
                match frame.kind {
                    kind::PING if frame.flags & flag::ACK == 0 => {
                        session.send(kind::PING, flag::ACK, 0, &frame.payload).await?;
                    }
                    kind::GOAWAY => break,
                    _ => {}
                }
            }
            eprintln!("an idle tunnel of many was closed {:?} after the measurement", start.elapsed());
            Ok(())
        };
        world.judge(1, attack).await
    })
}

pub(crate) fn frames_that_do_no_work_end_with_a_goaway() -> Result<()> {
    lab::block_on(async {
        let world = World::new().await?;
        let peer = world.peer();
        let attack = move |cue: Cue| async move {
            let tasks = Tasks::new("peer");
            let certs = certificates(&tasks);
            // PRIORITY, WINDOW_UPDATE of the connection, an unknown type, an empty DATA of no stream.
            for (kind, stream, payload) in [
                (2, 1, vec![0, 0, 0, 0, 16]),
                (kind::WINDOW_UPDATE, 0, vec![0, 0, 0, 1]),
                (0xba, 0, vec![0; 100]),
            ] {
                let mut session = peer.connect_as(&certs).await?;
                session.ack_settings().await?;
                for _ in 0..5_000 {
                    if session.send(kind, 0, stream, &payload).await.is_err() {
                        break;
                    }
                }
                let code = goaway(&mut session).await.with_context(|| format!("frames of type {kind}"))?;
                ensure!(code == ENHANCE_YOUR_CALM, "frames of type {kind}: GOAWAY {code}");
            }
            cue.hold().await;
            Ok(())
        };
        world.judge(1, attack).await
    })
}
