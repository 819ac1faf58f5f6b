//! The end of a connection's copy in a pod: its record ends with it, or is left for the hand-over of its tunnel. And which
//! tunnels the pod has.

use isthmus_hbone::TunnelId;
use isthmus_hbone::client::Tunnel;
use isthmus_hbone::copy::CopyOutcome;
use isthmus_rt::threads::Thread;

use super::PodContext;
use super::open_tunnels::{LeftConnection, RegisteredPair};
use crate::telemetry::Record;
use crate::tracker::Tracked;
use crate::types::PoolKey;

impl PodContext {
    /// A connection's copy has returned.
    pub(crate) fn finish(
        &self,
        (tunnel, stream): (TunnelId, u32),
        record: Record,
        tracked: Tracked,
        ended: CopyOutcome,
    ) {
        if ended.is_handed_over() {
            self.open_tunnels().leave(tunnel, stream, LeftConnection { record, tracked });
        } else {
            record.finish(ended);
        }
    }

    /// The copy of a connection without a tunnel has returned.
    pub(crate) fn finish_pair(
        &self,
        pair: &RegisteredPair<'_>,
        record: Record,
        tracked: Tracked,
        ended: CopyOutcome,
    ) {
        if ended.is_handed_over() {
            self.open_tunnels().leave_pair(pair.id, LeftConnection { record, tracked });
        } else {
            record.finish(ended);
        }
    }

    /// The pooled tunnels of all threads.
    pub(crate) fn pooled_tunnels(&self) -> Vec<(Thread, PoolKey, Tunnel)> {
        let mut all = Vec::new();
        for thread in self.threads().iter() {
            let pool = self.pools.at(thread).get();
            let tunnels = pool.map(|pool| pool.tunnels()).unwrap_or_default();
            all.extend(tunnels.into_iter().map(|(key, tunnel)| (thread, key, tunnel)));
        }
        all
    }
}
