//! Accepts the agents' connections and drives a [`Session`] over each. It owns sockets and deadlines; what to send is
//! decided by the session.

use std::io;
use std::path::Path;
use std::time::Duration;

use isthmus_rt::drain::Watch;
use isthmus_rt::task::Tasks;
use isthmus_sys::netns::Netns;
use isthmus_sys::private_socket;
use tokio::time::Instant;
use tokio_seqpacket::ancillary::AncillaryMessageWriter;
use tokio_seqpacket::{UnixSeqpacket, UnixSeqpacketListener};

use super::AgentError;
use super::registry::{AckSender, AgentRegistry, Registration, Request};
use super::session::{self, ACK_TIMEOUT};

/// Pause between two accepted connections, so that an agent in a crash loop costs no CPU.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(200);
/// Receive buffer. An ack is at most 1 KiB; a longer packet does not belong to the protocol.
const MAX_PACKET: usize = 8 << 10;

type Session = session::Session<Netns, AckSender>;
type Effect = session::Effect<Netns, AckSender>;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum ConnectionEnd {
    /// The agent has ended or reconnects.
    #[error("closed by the agent")]
    Eof,
    /// The agent violated the protocol.
    #[error(transparent)]
    Session(session::SessionError),
    /// The agent sent a packet that is not an ack.
    #[error("a packet longer than {MAX_PACKET} bytes")]
    PacketTooLong,
    /// The agent does not read from the socket.
    #[error("a packet could not be sent within {ACK_TIMEOUT:?}")]
    SendTimedOut,
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The node role drains.
    #[error("the node role is stopping")]
    Stopping,
}

/// Opens the socket, with mode 0600, in place of a stale one.
///
/// # Errors
/// When the folder cannot be made or the path cannot be bound.
pub(crate) fn bind(path: &Path) -> io::Result<UnixSeqpacketListener> {
    private_socket::bind(path, |path| UnixSeqpacketListener::bind(path))
}

/// Serves connections until the drain begins.
pub(crate) async fn serve(mut listener: UnixSeqpacketListener, registry: AgentRegistry, drain: Watch) {
    let tasks = Tasks::new("zds");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.graceful() => break,
        };
        match accepted {
            Ok(socket) => {
                tasks.spawn("zds connection", connection(socket, registry.clone(), drain.clone()));
            }
            Err(error) => tracing::warn!(%error, "ZDS connection not accepted"),
        }
        tokio::time::sleep(ACCEPT_INTERVAL).await;
    }
    tasks.wait().await;
}

async fn connection(socket: UnixSeqpacket, registry: AgentRegistry, drain: Watch) {
    let mut driver = Driver { socket, session: Session::new(now()), registry, registration: None };
    tracing::info!("agent connected (ZDS)");
    let ended = tokio::select! {
        ended = driver.run() => ended,
        () = drain.graceful() => ConnectionEnd::Stopping,
    };
    tracing::info!(reason = %ended, "agent disconnected (ZDS)");
    driver.fail_pending(&ended.to_string());
}

/// One connection: its socket, its state, and its registration once the hello has come.
struct Driver {
    socket: UnixSeqpacket,
    session: Session,
    registry: AgentRegistry,
    registration: Option<Registration>,
}

/// What the session must handle next.
enum Input {
    Packet(usize),
    Request(Request),
    Timeout,
}

impl Driver {
    async fn run(&mut self) -> ConnectionEnd {
        let mut buffer = vec![0; MAX_PACKET];
        loop {
            let effects = match self.input(&mut buffer).await {
                Ok(Input::Packet(len)) => self.session.handle_packet(&buffer[..len], now()),
                Ok(Input::Request(request)) => self.session.enqueue(request, now()),
                Ok(Input::Timeout) => self.session.handle_timeout(now()),
                Err(ended) => return ended,
            };
            if let Err(ended) = self.perform(effects).await {
                return ended;
            }
        }
    }

    async fn input(&mut self, buffer: &mut [u8]) -> Result<Input, ConnectionEnd> {
        let deadline = self.session.deadline();
        let requests = self.registration.as_mut().map(|registration| &mut registration.requests);
        tokio::select! {
            received = self.socket.recv(buffer) => {
                let info = received?;
                if info.truncated() {
                    Err(ConnectionEnd::PacketTooLong)
                } else if info.bytes_read() == 0 {
                    Err(ConnectionEnd::Eof)
                } else {
                    Ok(Input::Packet(info.bytes_read()))
                }
            }
            Some(request) = async { requests?.recv().await } => Ok(Input::Request(request)),
            () = sleep_until(deadline) => Ok(Input::Timeout),
        }
    }

    async fn perform(&mut self, effects: Vec<Effect>) -> Result<(), ConnectionEnd> {
        for effect in effects {
            match effect {
                Effect::TakeSnapshot => {
                    let mut registration = self.registry.register();
                    let snapshot = std::mem::take(&mut registration.snapshot);
                    self.registration = Some(registration);
                    tracing::info!(pods = snapshot.len(), "sending the snapshot of pods to the agent");
                    let first = self.session.snapshot(snapshot, now());
                    Box::pin(self.perform(first)).await?;
                }
                Effect::Send { packet, netns } => self.send(&packet, netns).await?,
                // The caller may have timed out and dropped its receiver.
                Effect::ResolveAck(ack, result) => drop(ack.send(result)),
                Effect::SnapshotRefused { what, error } => {
                    tracing::warn!(request = %what, %error, "the agent refused a pod of the snapshot; it retries by itself");
                }
                Effect::Synced => {
                    tracing::info!("the agent has acknowledged its snapshot of pods");
                    self.registry.mark_synced();
                }
                Effect::Close(error) => return Err(ConnectionEnd::Session(error)),
            }
        }
        Ok(())
    }

    async fn send(&self, packet: &[u8], netns: Option<Netns>) -> Result<(), ConnectionEnd> {
        let sending = async {
            let Some(netns) = netns else { return self.socket.send(packet).await };
            let mut space = [0; 64];
            let mut ancillary = AncillaryMessageWriter::new(&mut space);
            let descriptors = [netns.fd()];
            ancillary
                .add_fds(&descriptors)
                .map_err(|_| io::Error::other("descriptor does not fit the ancillary buffer"))?;
            self.socket.send_with_ancillary(packet, &mut ancillary).await
        };
        tokio::time::timeout(ACK_TIMEOUT, sending).await.map_err(|_| ConnectionEnd::SendTimedOut)??;
        Ok(())
    }

    /// Fails every request that was not acked: those in flight and those still queued.
    fn fail_pending(mut self, reason: &str) {
        let mut pending = self.session.abandon();
        if let Some(mut registration) = self.registration.take() {
            registration.requests.close();
            while let Ok(request) = registration.requests.try_recv() {
                if let Request::Add { ack, .. } | Request::Del { ack, .. } = request {
                    pending.extend(ack);
                }
            }
        }
        for ack in pending {
            let _ = ack.send(Err(AgentError::Disconnected(reason.to_owned())));
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
