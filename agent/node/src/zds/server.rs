//! Accepts the data plane's connections and drives a [`Session`] over each. Owns sockets and deadlines, no decision.

use std::io;
use std::path::Path;
use std::time::Duration;

use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use tokio::time::Instant;
use tokio_seqpacket::ancillary::AncillaryMessageWriter;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use super::AgentError;
use super::hub::{Hub, Order, Registered, Ticket};
use super::session::{self, PATIENCE};
use crate::sockets;

/// Time between two accepted connections.
const PACE: Duration = Duration::from_millis(200);
/// No answer is longer; one that is counts as garbage.
const LARGEST: usize = 8 << 10;

type Session = session::Session<Netns, Ticket>;
type Effect = session::Effect<Netns, Ticket>;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("the agent closed it")]
    Eof,
    #[error("{0}")]
    Closed(session::Closed),
    #[error("a packet longer than {LARGEST} bytes")]
    TooLong,
    #[error("a packet could not be sent within {PATIENCE:?}")]
    Stuck,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the node role stops")]
    Stopping,
}

/// Opens the socket, with mode 0600, in place of a stale one.
///
/// # Errors
/// When the folder cannot be made or the path cannot be bound.
pub(crate) fn bind(path: &Path) -> io::Result<UnixSeqpacketListener> {
    sockets::private(path, |path| UnixSeqpacketListener::bind(path))
}

/// Serves connections until the drain begins.
pub(crate) async fn serve(mut listener: UnixSeqpacketListener, hub: Hub, drain: Watch) {
    let tasks = Tasks::new("zds");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.graceful() => break,
        };
        match accepted {
            Ok(socket) => {
                tasks.spawn("zds connection", connection(socket, hub.clone(), drain.clone()));
            }
            Err(error) => tracing::warn!(error = %error, "no ZDS connection accepted"),
        }
        tokio::time::sleep(PACE).await;
    }
    tasks.wait().await;
}

async fn connection(socket: UnixSeqpacket, hub: Hub, drain: Watch) {
    let mut driver = Driver { socket, session: Session::new(now()), hub, place: None };
    tracing::info!("agent connected");
    let ended = tokio::select! {
        ended = driver.run() => ended,
        () = drain.graceful() => Ended::Stopping,
    };
    tracing::info!(reason = %ended, "agent disconnected");
    driver.abandon(&ended.to_string());
}

/// One connection: its socket, its state, and its place in the hub once it has said hello.
struct Driver {
    socket: UnixSeqpacket,
    session: Session,
    hub: Hub,
    place: Option<Registered>,
}

/// What happened next.
enum Input {
    Packet(usize),
    Order(Order),
    Time,
}

impl Driver {
    async fn run(&mut self) -> Ended {
        let mut buffer = vec![0; LARGEST];
        loop {
            let effects = match self.input(&mut buffer).await {
                Ok(Input::Packet(len)) => self.session.packet(&buffer[..len], now()),
                Ok(Input::Order(order)) => self.session.order(order, now()),
                Ok(Input::Time) => self.session.tick(now()),
                Err(ended) => return ended,
            };
            if let Err(ended) = self.perform(effects).await {
                return ended;
            }
        }
    }

    async fn input(&mut self, buffer: &mut [u8]) -> Result<Input, Ended> {
        let deadline = self.session.deadline();
        let orders = self.place.as_mut().map(|place| &mut place.orders);
        tokio::select! {
            received = self.socket.recv(buffer) => {
                let info = received?;
                if info.truncated() {
                    Err(Ended::TooLong)
                } else if info.bytes_read() == 0 {
                    Err(Ended::Eof)
                } else {
                    Ok(Input::Packet(info.bytes_read()))
                }
            }
            Some(order) = async { orders?.recv().await } => Ok(Input::Order(order)),
            () = sleep_until(deadline) => Ok(Input::Time),
        }
    }

    async fn perform(&mut self, effects: Vec<Effect>) -> Result<(), Ended> {
        for effect in effects {
            match effect {
                Effect::TakeSnapshot => {
                    let mut place = self.hub.register();
                    let snapshot = std::mem::take(&mut place.snapshot);
                    self.place = Some(place);
                    tracing::info!(pods = snapshot.len(), "sending the agent its pods");
                    let first = self.session.snapshot(snapshot, now());
                    Box::pin(self.perform(first)).await?;
                }
                Effect::Send { packet, netns } => self.send(&packet, netns).await?,
                // Whoever asked may have given up.
                Effect::Settle(ticket, result) => drop(ticket.send(result)),
                Effect::SnapshotRefused { what, error } => {
                    tracing::warn!(request = %what, error = %error, "the agent refused a pod it will try again");
                }
                Effect::Synced => {
                    tracing::info!("the agent knows its pods");
                    self.hub.mark_synced();
                }
                Effect::Close(why) => return Err(Ended::Closed(why)),
            }
        }
        Ok(())
    }

    async fn send(&self, packet: &[u8], netns: Option<Netns>) -> Result<(), Ended> {
        let sending = async {
            let Some(netns) = netns else { return self.socket.send(packet).await };
            let mut space = [0; 64];
            let mut ancillary = AncillaryMessageWriter::new(&mut space);
            let descriptors = [netns.fd()];
            ancillary.add_fds(&descriptors).map_err(|_| io::Error::other("no room for the descriptor"))?;
            self.socket.send_with_ancillary(packet, &mut ancillary).await
        };
        tokio::time::timeout(PATIENCE, sending).await.map_err(|_| Ended::Stuck)??;
        Ok(())
    }

    /// Tells everybody who still waits for this connection.
    fn abandon(mut self, reason: &str) {
        let mut waiting = self.session.abandon();
        if let Some(mut place) = self.place.take() {
            place.orders.close();
            while let Ok(order) = place.orders.try_recv() {
                if let Order::Add { ticket, .. } | Order::Del { ticket, .. } = order {
                    waiting.extend(ticket);
                }
            }
        }
        for ticket in waiting {
            let _ = ticket.send(Err(AgentError::Disconnected(reason.to_owned())));
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn sleep_until(at: Option<std::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
