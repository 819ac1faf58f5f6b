//! The script: the steps of client and server, scene by scene. A scene is independent of the road.

use std::pin::Pin;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use isthmus_kit::wait;

use crate::full::Full;
use crate::script::{End, Event, PATIENCE, Road, Trace, attempt};

/// A scene that is being played.
pub(crate) type Playing<'a> = Pin<Box<dyn Future<Output = Result<Trace>> + 'a>>;

/// A scene: its name and what is done.
pub(crate) type Scene = (&'static str, fn(&Road) -> Playing<'_>);

macro_rules! scenes {
    ($($scene:ident),* $(,)?) => {
        &[$((stringify!($scene), |road| Box::pin($scene(road)))),*]
    };
}

/// All scenes of the script.
pub(crate) const SCENES: &[Scene] = scenes![
    half_close_by_the_client,
    half_close_by_the_server,
    reset_by_the_client,
    reset_by_the_server,
    reset_by_the_server_behind_the_clients_fin,
    reset_by_the_client_behind_the_servers_fin,
    simultaneous_close,
    data_left_at_close_by_the_client,
    data_left_at_close_by_the_server,
    unread_data_at_close_by_the_client,
    unread_data_at_close_by_the_server,
    fin_with_unread_data,
    sending_on_after_the_server_closed,
    server_speaks_first,
    no_data_at_all,
    small_writes_by_the_client,
    small_writes_by_the_server,
    slow_reader_at_the_client,
    slow_reader_at_the_server,
    refused,
    black_hole,
    reset_before_the_answer,
];

/// Fits into the buffers of every road even when the receiver does not read.
pub(crate) const LITTLE: u64 = 50_000;
/// Does not fit into all buffers of any road together.
const MUCH: u64 = 128 * 1024 * 1024;
const SMALL_WRITES: u64 = 40_000;

async fn half_close_by_the_client(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = road.meet().await?;
    client.send(1000).await?;
    client.finish().await?;
    server.rest().await?;
    server.send(LITTLE).await?;
    client.read(LITTLE).await?;
    server.send(10).await?;
    server.close();
    client.rest().await?;
    Ok(End::trace(client, server))
}

async fn half_close_by_the_server(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = road.meet().await?;
    server.send(1000).await?;
    server.finish().await?;
    client.rest().await?;
    client.send(LITTLE).await?;
    server.read(LITTLE).await?;
    client.send(10).await?;
    client.close();
    server.rest().await?;
    Ok(End::trace(client, server))
}

/// One byte each way: every hop on the road is connected then.
async fn greeted(road: &Road) -> Result<(End, End)> {
    let (mut client, mut server) = road.meet().await?;
    client.send(1).await?;
    server.read(1).await?;
    server.send(1).await?;
    client.read(1).await?;
    Ok((client, server))
}

async fn reset_by_the_client(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    client.reset()?;
    server.rest().await?;
    Ok(End::trace(client, server))
}

async fn reset_by_the_server(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    server.send(LITTLE).await?;
    client.read(LITTLE).await?;
    server.reset()?;
    client.rest().await?;
    Ok(End::trace(client, server))
}

/// An answer that is cut off must not look complete.
async fn reset_by_the_server_behind_the_clients_fin(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    client.finish().await?;
    server.rest().await?;
    server.send(LITTLE).await?;
    client.read(LITTLE).await?;
    server.reset()?;
    client.rest().await?;
    Ok(End::trace(client, server))
}

async fn reset_by_the_client_behind_the_servers_fin(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    server.finish().await?;
    client.rest().await?;
    client.send(LITTLE).await?;
    server.read(LITTLE).await?;
    client.reset()?;
    server.rest().await?;
    Ok(End::trace(client, server))
}

async fn simultaneous_close(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    let finish = async |end: &mut End| {
        end.send(LITTLE).await?;
        end.finish().await
    };
    tokio::try_join!(finish(&mut client), finish(&mut server))?;
    tokio::try_join!(client.rest(), server.rest())?;
    client.close();
    server.close();
    Ok(End::trace(client, server))
}

async fn data_left_at_close_by_the_client(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    client.send(LITTLE).await?;
    client.close();
    server.rest().await?;
    Ok(End::trace(client, server))
}

async fn data_left_at_close_by_the_server(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    server.send(LITTLE).await?;
    server.close();
    client.rest().await?;
    Ok(End::trace(client, server))
}

/// The kernel resets a connection that is closed with unread data.
async fn unread_data_at_close_by_the_client(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    server.send(100).await?;
    client.arrived(100).await?;
    client.close();
    server.rest().await?;
    Ok(End::trace(client, server))
}

async fn unread_data_at_close_by_the_server(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    client.send(100).await?;
    server.arrived(100).await?;
    server.send(1000).await?;
    client.arrived(1000).await?;
    server.close();
    client.rest().await?;
    Ok(End::trace(client, server))
}

/// A FIN is not a close: data that is unread then is read later.
async fn fin_with_unread_data(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    server.send(100).await?;
    client.arrived(100).await?;
    client.finish().await?;
    server.rest().await?;
    server.send(LITTLE).await?;
    server.close();
    client.rest().await?;
    Ok(End::trace(client, server))
}

/// The answer is complete although the server has closed and the client keeps sending; the client then sees the reset.
async fn sending_on_after_the_server_closed(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = greeted(road).await?;
    server.send(LITTLE).await?;
    server.close();
    client.rest().await?;
    client.send_until_told().await?;
    Ok(End::trace(client, server))
}

async fn server_speaks_first(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = road.meet().await?;
    server.send(LITTLE).await?;
    client.read(LITTLE).await?;
    client.send(10).await?;
    server.read(10).await?;
    server.close();
    client.rest().await?;
    Ok(End::trace(client, server))
}

async fn no_data_at_all(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = road.meet().await?;
    client.close();
    server.rest().await?;
    Ok(End::trace(client, server))
}

async fn small_writes_by_the_client(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = road.meet().await?;
    tokio::try_join!(client.send_in(SMALL_WRITES, 1), server.read(SMALL_WRITES))?;
    client.close();
    server.rest().await?;
    Ok(End::trace(client, server))
}

async fn small_writes_by_the_server(road: &Road) -> Result<Trace> {
    let (mut client, mut server) = road.meet().await?;
    tokio::try_join!(server.send_in(SMALL_WRITES, 1), client.read(SMALL_WRITES))?;
    server.close();
    client.rest().await?;
    Ok(End::trace(client, server))
}

async fn slow_reader_at_the_client(road: &Road) -> Result<Trace> {
    let (client, server) = road.meet().await?;
    let (server, client) = slowly(server, client).await?;
    Ok(End::trace(client, server))
}

async fn slow_reader_at_the_server(road: &Road) -> Result<Trace> {
    let (client, server) = road.meet().await?;
    let (client, server) = slowly(client, server).await?;
    Ok(End::trace(client, server))
}

/// One end sends, the other does not read: the sender is blocked, and nothing is lost.
async fn slowly(mut from: End, mut to: End) -> Result<(End, End)> {
    from.send_until_held_up(MUCH).await?;
    let rest = MUCH - from.sent();
    let send = async {
        from.send(rest).await?;
        from.close();
        Ok(())
    };
    tokio::try_join!(send, to.rest())?;
    Ok((from, to))
}

async fn refused(road: &Road) -> Result<Trace> {
    let client = attempt(road, road.port(), PATIENCE).await?;
    Ok(Trace { client: client.seen(), server: Vec::new() })
}

/// Several clients connect at once to a server that does not answer. Each waits for one connect timeout of the agent, or
/// two when there is another endpoint to try; none waits for the clients before it, which would be five.
async fn black_hole(road: &Road) -> Result<Trace> {
    const LIMIT: Duration = Duration::from_secs(25);
    let port = road.port();
    let _full = Full::new(road, port).await?;
    let begun = Instant::now();
    let one = || attempt(road, port, Duration::from_secs(4));
    let ended = tokio::try_join!(one(), one(), one(), one(), one())?;
    ensure!(begun.elapsed() < LIMIT, "all were told after {:?} only", begun.elapsed());
    let ended = <[End; 5]>::from(ended);
    Ok(Trace { client: ended.into_iter().flat_map(End::seen).collect(), server: Vec::new() })
}

/// A client that resets while the server's SYN-ACK is still outstanding: the agent stops dialling on its behalf, and the
/// server never sees a connection.
async fn reset_before_the_answer(road: &Road) -> Result<Trace> {
    let port = road.port();
    let full = Full::new(road, port).await?;
    let mut connecting = Box::pin(road.connect(port));
    let mut dialled = Box::pin(until(PATIENCE, || road.dials(port)));
    let mut client = None;
    loop {
        tokio::select! {
            biased;
            seen = &mut dialled => break ensure!(seen?, "the server is not dialled"),
            done = &mut connecting, if client.is_none() => client = Some(End::new(done?)),
        }
    }
    drop(dialled);
    // An agent dials only for a connection that is established, though its future may not have been polled since.
    // Dropped then, the client would send a FIN instead of the reset.
    if client.is_none() && !road.client.dials(port)? {
        client = Some(End::new(connecting.as_mut().await?));
    }
    drop(connecting);
    if let Some(mut client) = client {
        client.reset()?;
    }
    let mut server = Vec::new();
    // Well before the connect timeout.
    if !until(Duration::from_secs(5), || Ok(!road.dials(port)?)).await? {
        server.push(Event::NoAnswer);
    }
    if full.emptied().await? {
        server.push(Event::Connected);
    }
    Ok(Trace { client: Vec::new(), server })
}

/// Waits for a condition; returns whether it came to hold.
async fn until(limit: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<bool> {
    let holds = wait::within(limit, async || condition().map(|holds| holds.then_some(true)).transpose());
    holds.await.unwrap_or(Ok(false))
}
