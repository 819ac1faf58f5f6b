//! One line for each stage, with the seconds since the start, on standard error.

use std::time::Instant;

use crate::output;

/// Since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress(Instant);

impl Progress {
    /// The clock starts.
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    /// A stage begins.
    pub(super) fn stage(self, name: &str, what: &str) {
        output::note(format_args!("[{:>5.1}s] {name}: {what}", self.seconds()));
    }

    /// Since the start.
    pub(super) fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}
