//! Budgets for frames that cost us work and do none for the peer: the published HTTP/2 denial-of-service attacks.
//!
//! Each kind has a limit on what was spent and not yet returned. Spending comes back in two ways: with useful work, which
//! makes the limits independent of the load of honest peers, and with time, which the caller reports with
//! [`crate::Connection::tick`]. Every budget returns in full within [`FULL_RETURN`]. There is no clock here.

use std::time::Duration;

/// Time in which all that was spent is returned.
pub const FULL_RETURN: Duration = Duration::from_secs(10);

/// Steps in which time is counted.
const STEP: Duration = Duration::from_millis(100);
const STEPS: u128 = FULL_RETURN.as_millis() / STEP.as_millis();

/// What a peer does too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Abuse {
    /// Requests that are reset at once and before they were answered (CVE-2023-44487). Each answer returns one.
    #[error("too many requests reset before they were answered")]
    RapidReset,
    /// Stream errors that make us reset streams (CVE-2025-8671), refused streams included.
    #[error("too many stream errors")]
    ProvokedReset,
    /// SETTINGS (CVE-2019-9515).
    #[error("too many SETTINGS")]
    Settings,
    /// PING and unsolicited answers (CVE-2019-9512). DATA in either direction returns them, as some peers measure the
    /// round trip with each read.
    #[error("too many PINGs")]
    Ping,
    /// DATA with neither payload nor END_STREAM (CVE-2019-9518). DATA with payload returns one.
    #[error("too many empty DATA frames")]
    EmptyData,
    /// CONTINUATION, by number or bytes (CVE-2024-27316).
    #[error("too many or too large CONTINUATION frames")]
    Continuation,
    /// WINDOW_UPDATE beyond what our DATA justifies: four for each frame, and one for each 256 bytes of it.
    #[error("too many WINDOW_UPDATEs")]
    WindowUpdate,
    /// PRIORITY (CVE-2019-9513). New streams return them.
    #[error("too many PRIORITY frames")]
    Priority,
    /// Frames of unknown types.
    #[error("too many frames of unknown types")]
    UnknownFrame,
    /// Frames for streams that are closed.
    #[error("too many frames for closed streams")]
    LateFrame,
    /// Interim responses.
    #[error("too many interim responses")]
    Interim,
    /// GOAWAY.
    #[error("too many GOAWAYs")]
    GoAway,
    /// A small field block that decodes to a large list.
    #[error("a field block that decodes to many times the header list size")]
    HpackBomb,
    /// The peer makes us answer and does not read the answers.
    #[error("answers queue up that the peer does not read")]
    Output,
    /// Streams that the peer opens and resets without a byte of DATA in either direction, answered or not: each makes us
    /// dial. Streams that carry DATA return them.
    #[error("too many streams reset before they carried data")]
    BarrenReset,
}

/// How many kinds of abuse there are.
pub const KINDS: usize = 15;

/// What was spent of each budget, and the time that has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetParts {
    /// What was spent of each kind, in the order of [`Abuse`].
    pub spent: [u32; KINDS],
    /// Steps of 100 ms that have passed; they wrap around.
    pub steps: u32,
    /// Time below one step.
    pub carried: Duration,
}

/// The budgets of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Budgets {
    parts: BudgetParts,
    /// Streams that the peer may have open: it may honestly reset all of them at once.
    streams: u32,
}

// === impl Abuse ===

impl Abuse {
    const fn index(self) -> usize {
        self as usize
    }

    /// How much may be spent; `streams` is how many the peer may have open.
    #[must_use]
    pub fn limit(self, streams: u32) -> u32 {
        match self {
            Self::RapidReset | Self::ProvokedReset => streams.saturating_mul(2).clamp(100, 10_000),
            Self::Ping | Self::WindowUpdate => 1_000,
            // Whatever was in flight or buffered when we reset a stream: many small frames at worst. One costs little.
            Self::LateFrame => 262_144,
            // A thousand a second: health checks that end with a reset are honest.
            Self::BarrenReset => 10_000,
            Self::GoAway => 10,
            // These are bounded for each block or for the connection, where they occur.
            Self::Continuation | Self::HpackBomb | Self::Output => 0,
            Self::Settings | Self::EmptyData | Self::Priority | Self::UnknownFrame | Self::Interim => 100,
        }
    }
}

// === impl Budgets ===

impl Budgets {
    /// Nothing spent; the peer may have `streams` streams open.
    pub(crate) fn new(streams: u32) -> Self {
        Self::from_parts(BudgetParts { spent: [0; KINDS], steps: 0, carried: Duration::ZERO }, streams)
    }

    /// Budgets of which as much was spent.
    pub(crate) fn from_parts(parts: BudgetParts, streams: u32) -> Self {
        Self { parts, streams }
    }

    /// What was spent, to go on with elsewhere.
    pub(crate) fn into_parts(self) -> BudgetParts {
        self.parts
    }

    /// Steps of time that have passed; they wrap around.
    pub(crate) fn steps(&self) -> u32 {
        self.parts.steps
    }

    /// Spends.
    ///
    /// # Errors
    /// When more is spent than the limit allows.
    pub(crate) fn spend(&mut self, kind: Abuse, cost: u32) -> Result<(), Abuse> {
        let spent = &mut self.parts.spent[kind.index()];
        *spent = spent.saturating_add(cost);
        if *spent > kind.limit(self.streams) { Err(kind) } else { Ok(()) }
    }

    /// Returns what useful work has earned.
    pub(crate) fn earn(&mut self, kind: Abuse, gain: u32) {
        let spent = &mut self.parts.spent[kind.index()];
        *spent = spent.saturating_sub(gain);
    }

    /// Returns what time has earned.
    pub(crate) fn tick(&mut self, elapsed: Duration) {
        let carried = self.parts.carried.saturating_add(elapsed).min(FULL_RETURN);
        let steps = carried.as_millis() / STEP.as_millis();
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        self.parts.carried = carried.saturating_sub(STEP * steps);
        self.parts.steps = self.parts.steps.wrapping_add(steps);
        for kind in ALL.into_iter().filter(|_| steps > 0) {
            let share = u128::from(kind.limit(self.streams)) * u128::from(steps) / STEPS;
            self.earn(kind, u32::try_from(share).unwrap_or(u32::MAX).max(1));
        }
    }
}

/// All kinds, in order.
const ALL: [Abuse; KINDS] = [
    Abuse::RapidReset,
    Abuse::ProvokedReset,
    Abuse::Settings,
    Abuse::Ping,
    Abuse::EmptyData,
    Abuse::Continuation,
    Abuse::WindowUpdate,
    Abuse::Priority,
    Abuse::UnknownFrame,
    Abuse::LateFrame,
    Abuse::Interim,
    Abuse::GoAway,
    Abuse::HpackBomb,
    Abuse::Output,
    Abuse::BarrenReset,
];
