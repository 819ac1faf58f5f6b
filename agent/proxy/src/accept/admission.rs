//! What a connection gets before it is served: a descriptor of its pod's share, and on some listeners a handshake slot. One
//! that gets none is reset, counted and logged. Knows no protocol.

use std::sync::Arc;

use isthmus_rt::descriptors::DescriptorShare;
use isthmus_rt::fair::Share;
use isthmus_sys::limits::is_out_of_descriptors;
use isthmus_sys::socket::reset_on_close;

use super::handshake_slots::HandshakeSlots;
use super::listener::Accepted;
use crate::error::Error;
use crate::telemetry::{Metrics, access_log};
use crate::types::Direction;

/// Admits the connections of one listener.
#[derive(Debug, Clone)]
pub(crate) struct Admission {
    /// The pod's share of CPU time: it delays new connections while the pod exceeds it.
    pub(crate) share: Arc<Share>,
    /// Of the pod or gateway.
    pub(crate) descriptors: DescriptorShare,
    /// Limits the handshakes in progress.
    pub(crate) handshakes: Option<Arc<HandshakeSlots>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of the listener's connections, for the log.
    pub(crate) direction: Direction,
}

impl Admission {
    /// Waits until the pod may accept one more connection. Where connections need a handshake slot, each of them waits by
    /// itself once it has one: a queue in the kernel would let a client that floods delay the others.
    pub(super) async fn pace(&self) {
        if self.handshakes.is_none() {
            self.share.admit().await;
        }
    }

    /// Counts the descriptor of a connection that was accepted; `None` when it was refused.
    pub(super) fn count(&self, accepted: Accepted) -> Option<Accepted> {
        if let Some(descriptor) = self.descriptors.acquire() {
            return Some(Accepted { descriptor: Some(descriptor), ..accepted });
        }
        self.refuse(&accepted, &Error::NoDescriptor);
        None
    }

    /// Waits for a handshake slot where one is needed; `None` when the connection was refused.
    pub(super) async fn slot(&self, accepted: Accepted) -> Option<Accepted> {
        let Some(handshakes) = &self.handshakes else { return Some(accepted) };
        match handshakes.acquire(accepted.source.ip()).await {
            Ok(slot) => {
                self.share.admit().await;
                Some(Accepted { slot: Some(slot), ..accepted })
            }
            Err(_) => {
                self.refuse(&accepted, &Error::HandshakeRefused { limit: handshakes.limit() });
                None
            }
        }
    }

    /// Records that `accept` failed, if it did for want of descriptors in the process or the machine.
    pub(super) fn record_failure(&self, error: &std::io::Error) {
        if is_out_of_descriptors(error) {
            self.descriptors.process().record_exhaustion();
        }
    }

    fn refuse(&self, accepted: &Accepted, error: &Error) {
        reset_on_close(&accepted.stream);
        let local = match self.direction {
            Direction::Inbound => accepted.local(),
            Direction::Outbound => accepted.original,
        };
        access_log::failed(&self.metrics, (accepted.source, local), self.direction, error);
    }
}
