//! What the peer may send: the windows of streams and of the connection, as readers take them and budgets allow.

use isthmus_http2::StreamId;
use tokio::time::Instant;

use super::{LEAST_CREDIT, RTT_PING, TunnelState};
use crate::tunnel::window::Advice;

impl TunnelState {
    pub(super) fn grant_credit(&mut self, id: StreamId, bytes: usize) {
        self.http2.grant(id, u32::try_from(bytes).unwrap_or(u32::MAX));
        self.adjust_window(id, bytes);
        match self.connection_window.take(bytes, &self.round_trip, Instant::now) {
            Advice::Double if self.connection_window.goal() < self.limit / 4 => {
                self.connection_window.double()
            }
            Advice::Measure => self.measure_round_trip(),
            Advice::Keep | Advice::Double => {}
        }
    }

    fn measure_round_trip(&mut self) {
        if self.round_trip.start(Instant::now()) {
            self.http2.ping(RTT_PING);
        }
    }

    /// Whether the windows of streams may grow by as much. What a full tunnel of stalled streams would hold, as far as that
    /// is half of the tunnel's memory, is left for them.
    fn may_grow(&self, by: u32) -> bool {
        let growth = self.connection_window.grown().saturating_add(by);
        growth <= self.limit - self.reserved.min(self.limit / 2) && self.memory.may_grow(by as usize)
    }

    /// Fits the window of the connection to what its streams take, what stalled ones hold, and what the budgets allow.
    pub(in crate::tunnel) fn balance(&mut self) {
        let is_tight = self.memory.is_tight();
        let goal = if is_tight { LEAST_CREDIT } else { self.connection_window.goal() };
        self.http2.set_credit_goal(goal);
        let window = self.http2.connection_window();
        let wanted = goal.saturating_add(window.unreleased).min(self.limit.max(LEAST_CREDIT));
        let missing = wanted.saturating_sub(window.size);
        self.starved = false;
        if missing > 0 && missing >= goal / 4 {
            if self.memory.may_grow(missing as usize) {
                self.http2.grow_connection(wanted);
            } else {
                self.starved = true;
                if let Some(owner) = &self.owner {
                    self.memory.wait(owner);
                }
            }
        }
        self.memory.window = self.http2.connection_window().size as usize;
        self.memory.settle();
    }

    /// Charges the budgets of this process with all that a tunnel from another one holds, and lets its peer have the credit
    /// that they allow.
    pub(super) fn charge(&mut self) {
        let streams: Vec<_> = self.streams.keys().copied().collect();
        streams.iter().for_each(|id| self.count_slack(*id));
        self.http2.set_held_streams(streams.len());
        self.memory.unwritten = self.send_buffer.allocated();
        self.balance();
    }

    /// Whether the tunnel, which has no stream, keeps others from what its peer was given for earlier ones: that can only be
    /// taken back with the tunnel.
    pub(in crate::tunnel) fn is_hoarding(&self) -> bool {
        self.memory.is_tight() && self.http2.connection_window().size > self.connection_window.goal()
    }

    /// Whether a budget kept the window small: there may be room now.
    pub(in crate::tunnel) fn is_starved(&self) -> bool {
        self.starved
    }

    /// The memory of a stream's queue has changed.
    pub(super) fn count_slack(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let now = stream.queue.slack();
            let before = std::mem::replace(&mut stream.slack, now);
            self.memory.slack = self.memory.slack - before + now;
        }
    }

    fn adjust_window(&mut self, id: StreamId, taken: usize) {
        self.count_slack(id);
        let Some((window, _)) = self.http2.receive_window(id) else { return };
        let Some(stream) = self.streams.get_mut(&id).filter(|_| window < self.max_stream_window) else {
            return;
        };
        match stream.window.take(taken, window, &self.round_trip, Instant::now) {
            Advice::Keep => {}
            Advice::Measure => self.measure_round_trip(),
            Advice::Double => {
                let larger = window.saturating_mul(2).min(self.max_stream_window);
                if self.may_grow(larger - window)
                    && let Some(stream) = self.streams.get_mut(&id)
                {
                    stream.grown += larger - window;
                    self.connection_window.grow(larger - window);
                    self.http2.grow(id, larger);
                }
            }
        }
    }
}
