//! Flow-control windows of both directions (RFC 9113 §5.2 and §6.9), for streams and for the connection alike.

use crate::frame::MAX_U31;

/// Window of streams and connections before any SETTINGS or WINDOW_UPDATE.
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;

/// A window exceeded 2^31-1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

/// What we may send. A lower INITIAL_WINDOW_SIZE of the peer can make it negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow(pub i64);

/// What the peer may send, and what it gets back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// Size of the window: the credit when everything was returned.
    pub size: u32,
    /// Credit that the peer has. Negative while it has not yet seen a window below the default.
    pub credit: i64,
    /// Bytes received and not yet released by the application.
    pub unreleased: u32,
    /// Bytes released and not yet announced.
    pub pending: u32,
}

// === impl SendWindow ===

impl SendWindow {
    /// What can be sent now.
    #[must_use]
    pub fn available(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// Uses credit, of which there must be as much.
    pub fn take(&mut self, bytes: usize) {
        self.0 -= i64::try_from(bytes).unwrap_or(i64::MAX);
    }

    /// Adds to the window, or subtracts when the peer's INITIAL_WINDOW_SIZE became lower.
    ///
    /// # Errors
    /// When it exceeds 2^31-1.
    pub fn adjust(&mut self, change: i64) -> Result<(), Overflow> {
        let window = self.0.saturating_add(change);
        if window > i64::from(MAX_U31) {
            return Err(Overflow);
        }
        self.0 = window;
        Ok(())
    }
}

// === impl ReceiveWindow ===

impl ReceiveWindow {
    /// A window of `size` of which the peer has been given `credit`.
    #[must_use]
    pub fn new(size: u32, credit: u32) -> Self {
        Self { size, credit: i64::from(credit), unreleased: 0, pending: 0 }
    }

    /// Counts received bytes; false when they exceed the credit.
    #[must_use]
    pub fn receive(&mut self, bytes: u32) -> bool {
        if i64::from(bytes) > self.credit {
            return false;
        }
        self.credit -= i64::from(bytes);
        self.unreleased = self.unreleased.saturating_add(bytes);
        true
    }

    /// Takes back bytes that the application has processed, at most as many as it was given; returns how many.
    pub fn release(&mut self, bytes: u32) -> u32 {
        let bytes = bytes.min(self.unreleased);
        self.unreleased -= bytes;
        self.pending = self.pending.saturating_add(bytes);
        bytes
    }

    /// Makes the window larger.
    pub fn grow(&mut self, size: u32) {
        let size = size.clamp(self.size, MAX_U31.max(self.size));
        self.pending = self.pending.saturating_add(size - self.size);
        self.size = size;
    }

    /// Makes the window smaller until the peer is to have no more credit than `goal`, as far as credit was not announced
    /// yet: what the peer was given cannot be taken back.
    pub fn shrink_to(&mut self, goal: u32) {
        let excess = self.credit.saturating_add(i64::from(self.pending)).saturating_sub(i64::from(goal));
        let less = u32::try_from(excess.max(0)).unwrap_or(u32::MAX).min(self.pending);
        self.pending -= less;
        self.size = self.size.saturating_sub(less);
    }

    /// The credit to announce now, if it is worth a frame: a quarter of the window, so that the peer has three quarters left
    /// at least as far as the application keeps up, or as much as the peer has left. The latter is what keeps a connection
    /// going when most of its window is taken by streams whose applications do not read.
    #[must_use]
    pub fn announce(&mut self) -> Option<u32> {
        let is_due = self.pending >= self.size / 4 || i64::from(self.pending) >= self.credit;
        if is_due { self.announce_all() } else { None }
    }

    /// All credit that was not announced yet, if there is any.
    #[must_use]
    pub fn announce_all(&mut self) -> Option<u32> {
        if self.pending == 0 {
            return None;
        }
        let increment = std::mem::take(&mut self.pending);
        self.credit += i64::from(increment);
        Some(increment)
    }
}
