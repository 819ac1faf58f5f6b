//! How large a stream's receive window should be: as large as what its reader takes in two round trips.
//!
//! Windows begin small, so that a stalled application costs little, and double while the reader takes a whole window sooner
//! than the peer could have been held up by it. Values only: the caller has the clock and sends the PING that measures.

use std::time::Duration;

use tokio::time::Instant;

use super::parts::{ConnectionWindowParts, RoundTripParts, WindowUseParts, ago};

/// How old a measured round trip may be. Under load it grows, and so should windows.
const RTT_AGE: Duration = Duration::from_secs(1);

/// The window up to which a stream's doubles each time it was taken once, whatever the time: the first windows are no larger
/// than what TCP sends in its first round trips.
const QUICK: u32 = 256 * 1024;

/// The round trip of a tunnel.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    /// When the PING that was not answered yet was sent.
    sent_at: Option<Instant>,
    /// The last round trip, and when it ended.
    last: Option<(Duration, Instant)>,
}

/// What the reader of one stream has taken of its window.
#[derive(Debug, Default)]
pub(super) struct WindowUse {
    taken: u64,
    since: Option<Instant>,
}

/// The credit that the peer is to have for the connection: what its streams need that are taken from, whatever stalled ones
/// hold besides.
#[derive(Debug)]
pub(super) struct ConnectionWindow {
    initial: u32,
    /// For streams whose windows have not grown. It grows while many of them take it within two round trips.
    base: u32,
    /// By how much the windows of the streams of now have grown.
    grown: u32,
    window_use: WindowUse,
}

/// What to do about a window.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Leave it.
    Keep,
    /// Measure the round trip.
    Measure,
    /// Double it.
    Double,
}

// === impl RoundTrip ===

impl RoundTrip {
    /// Whether a PING is to be sent now.
    pub(super) fn start(&mut self, now: Instant) -> bool {
        let starts = self.sent_at.is_none();
        self.sent_at.get_or_insert(now);
        starts
    }

    pub(super) fn into_parts(self) -> RoundTripParts {
        let Self { sent_at, last } = self;
        RoundTripParts {
            sent: sent_at.map(|at| at.elapsed()),
            last: last.map(|(trip, at)| (trip, at.elapsed())),
        }
    }

    pub(super) fn from_parts(parts: RoundTripParts) -> Self {
        let RoundTripParts { sent, last } = parts;
        Self { sent_at: sent.map(ago), last: last.map(|(trip, since)| (trip, ago(since))) }
    }

    /// The PING was answered.
    pub(super) fn finish(&mut self, now: Instant) {
        if let Some(sent_at) = self.sent_at.take() {
            self.last = Some((now - sent_at, now));
        }
    }
}

// === impl WindowUse ===

impl WindowUse {
    pub(super) fn into_parts(self) -> WindowUseParts {
        let Self { taken, since } = self;
        WindowUseParts { taken, since: since.map(|at| at.elapsed()) }
    }

    pub(super) fn from_parts(parts: WindowUseParts) -> Self {
        let WindowUseParts { taken, since } = parts;
        Self { taken, since: since.map(ago) }
    }

    /// The reader has taken `bytes` more. `now` is asked for once per window.
    pub(super) fn take(
        &mut self,
        bytes: usize,
        window: u32,
        round_trip: &RoundTrip,
        now: impl FnOnce() -> Instant,
    ) -> Advice {
        self.taken += bytes as u64;
        if self.taken < u64::from(window) {
            return Advice::Keep;
        }
        self.taken = 0;
        if window < QUICK {
            return Advice::Double;
        }
        let now = now();
        let since = self.since.replace(now);
        match (round_trip.last, since) {
            (Some((trip, _)), Some(since)) if now - since < 2 * trip => Advice::Double,
            (Some((_, at)), _) if now - at < RTT_AGE => Advice::Keep,
            _ => Advice::Measure,
        }
    }
}

// === impl ConnectionWindow ===

impl ConnectionWindow {
    pub(super) fn new(initial: u32) -> Self {
        Self { initial, base: initial, grown: 0, window_use: WindowUse::default() }
    }

    pub(super) fn into_parts(self) -> ConnectionWindowParts {
        // By as much as those of its streams, and the setting is that of the process which goes on.
        let Self { initial: _, base, grown: _, window_use } = self;
        ConnectionWindowParts { base, window_use: window_use.into_parts() }
    }

    /// With streams whose windows have grown by `grown`.
    pub(super) fn from_parts(parts: ConnectionWindowParts, initial: u32, grown: u32) -> Self {
        let ConnectionWindowParts { base, window_use } = parts;
        Self { initial, base: base.max(initial), grown, window_use: WindowUse::from_parts(window_use) }
    }

    /// The credit that the peer is to have.
    pub(super) fn goal(&self) -> u32 {
        self.base.saturating_add(self.grown)
    }

    /// By how much the windows of streams have grown.
    pub(super) fn grown(&self) -> u32 {
        self.grown
    }

    /// A stream's window has grown.
    pub(super) fn grow(&mut self, by: u32) {
        self.grown = self.grown.saturating_add(by);
    }

    /// A stream is gone whose window had grown.
    pub(super) fn release(&mut self, grown: u32) {
        self.grown = self.grown.saturating_sub(grown);
    }

    /// Readers have taken `bytes` more: whether the whole is what holds them up, and is to be doubled with [`Self::double`].
    pub(super) fn take(&mut self, bytes: usize, trip: &RoundTrip, now: impl FnOnce() -> Instant) -> Advice {
        self.window_use.take(bytes, self.goal(), trip, now)
    }

    /// Twice as much for streams that have not grown.
    pub(super) fn double(&mut self) {
        self.base = self.base.saturating_mul(2);
    }

    /// No stream is open: later ones begin as the first did.
    pub(super) fn reset(&mut self) {
        (self.base, self.grown) = (self.initial, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_connections_window_grows_with_the_streams_of_one_time_only() {
        let mut window = ConnectionWindow::new(100);
        window.grow(20);
        window.grow(30);
        assert_eq!(window.goal(), 150);
        // Streams that come and go, each of which grows.
        for _ in 0..1000 {
            window.release(30);
            window.grow(30);
        }
        assert_eq!(window.goal(), 150);
        window.double();
        assert_eq!(window.goal(), 250);
        window.reset();
        assert_eq!(window.goal(), 100);
    }

    #[test]
    fn a_window_doubles_while_it_is_taken_within_two_round_trips() {
        let (mut used, mut trip, start) = (WindowUse::default(), RoundTrip::default(), Instant::now());
        let never = || -> Instant { panic!("the window is not taken yet") };
        assert_eq!(used.take(99, 100, &trip, never), Advice::Keep);
        assert_eq!(used.take(1, 100, &trip, never), Advice::Double, "a small one at once");
        let window = QUICK as usize;
        assert_eq!(used.take(window - 1, QUICK, &trip, never), Advice::Keep);
        assert_eq!(used.take(1, QUICK, &trip, || start), Advice::Measure);
        assert!(trip.start(start) && !trip.start(start + MS), "one PING at a time");
        trip.finish(start + 10 * MS);
        for (took, advice) in [(19, Advice::Double), (20, Advice::Keep), (5, Advice::Double)] {
            let mut used = WindowUse { taken: 0, since: Some(start + 20 * MS) };
            assert_eq!(used.take(window, QUICK, &trip, || start + (20 + took) * MS), advice, "{took} ms");
        }
        let mut used = WindowUse { taken: 0, since: Some(start) };
        assert_eq!(used.take(window, QUICK, &trip, || start + 2000 * MS), Advice::Measure, "the last is old");
    }
}
