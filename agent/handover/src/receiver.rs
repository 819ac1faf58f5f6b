//! The successor's side: listens, and runs the units that it is given.

mod state;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::PodUid;
use isthmus_sys::private_socket;
use isthmus_sys::secrecy::NotDumpable;
use tokio::time::{sleep, timeout};
use tokio_seqpacket::UnixSeqpacketListener;

pub use self::state::{Action, Receiving};
use crate::channel::{Channel, ChannelError};
use crate::frame::{Frame, MAX_PODS};
use crate::metrics::{Metrics, Outcome};
use crate::seams::{Prepared, Receiver};

/// How long the predecessor may be silent. It brings units to rest one by one.
const SILENCE: Duration = Duration::from_secs(30);
/// Pause after an error of the listener.
const PAUSE: Duration = Duration::from_millis(200);

/// The socket on which an agent waits for its predecessor.
#[derive(Debug)]
pub struct Listener(UnixSeqpacketListener);

/// Why a conversation has ended early.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The frames make no sense.
    #[error("the predecessor sent {0}")]
    Order(&'static str),
    /// Nothing came.
    #[error("the predecessor was silent for {SILENCE:?}")]
    Silent,
}

impl Listener {
    /// Listens at a path that only this user may connect to, in place of the agent that listened there before. Must be
    /// called inside a runtime.
    ///
    /// # Errors
    /// When the path cannot be bound.
    pub fn bind(path: &Path) -> io::Result<Self> {
        private_socket::bind(path, |path| UnixSeqpacketListener::bind(path)).map(Self)
    }

    /// Takes over what is handed over. Dropped, a unit that is not committed yet stays with the predecessor.
    pub async fn serve(mut self, receiver: Arc<dyn Receiver>, metrics: Arc<Metrics>) {
        loop {
            let taken_over = match self.0.accept().await {
                Ok(socket) => match Channel::new(socket) {
                    Ok(channel) => converse(channel, &*receiver, &metrics).await,
                    Err(error) => Err(error.into()),
                },
                Err(error) => {
                    sleep(PAUSE).await;
                    Err(ChannelError::Io(error).into())
                }
            };
            match taken_over {
                Ok(connections) => {
                    tracing::info!(connections, "connections of the predecessor were taken over")
                }
                Err(error) => {
                    tracing::warn!(%error, "a hand-over ended early, the predecessor keeps what is left")
                }
            }
        }
    }
}

/// One conversation; how many connections were taken over.
async fn converse(mut channel: Channel, receiver: &dyn Receiver, metrics: &Metrics) -> Result<usize, Broken> {
    let _secret = NotDumpable::begin();
    let mut pods: Vec<String> = receiver.pods().iter().map(|pod| pod.as_str().to_owned()).collect();
    pods.truncate(MAX_PODS);
    let mut machine = Receiving::new(pods.clone());
    let mut ready: Option<Box<dyn Prepared>> = None;
    let mut connections = 0;
    loop {
        let received = timeout(SILENCE, channel.recv()).await.map_err(|_| Broken::Silent)?;
        let (frame, sockets) = received?;
        match machine.step(frame, sockets) {
            Action::Wait => {}
            Action::Welcome { build } => {
                tracing::info!(build, pods = pods.len(), "the predecessor hands its connections over");
                channel.send(Frame::Wants(std::mem::take(&mut pods))).await?;
            }
            Action::Prepare { pod, items } => {
                let prepared = receiver.prepare(PodUid::from(pod.as_str()), items).await;
                let outcome = prepared.map(|unit| ready = Some(unit));
                channel.send(machine.prepared(outcome)).await?;
            }
            Action::Run => {
                let Some(unit) = ready.take() else { return Err(Broken::Order("a frame out of order")) };
                connections += unit.connections();
                metrics.count(Outcome::TakenOver, unit.connections());
                unit.run();
            }
            Action::Stop => return Ok(connections),
            Action::Break(what) => return Err(Broken::Order(what)),
        }
    }
}
