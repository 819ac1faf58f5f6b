//! Which signing failures are logged: one warning for each reason of an outage, not one per attempt and identity.

use std::collections::BTreeSet;

use crate::source::SignError;

/// Reasons of one outage that are logged; error texts that never repeat must not fill the log.
const MAX_REASONS: usize = 8;

/// Failures since the last success.
#[derive(Default)]
pub(super) struct Outage {
    failures: u64,
    reported: BTreeSet<String>,
}

impl Outage {
    /// Counts a failure; a success ends the outage and logs its length if the outage was logged.
    pub(super) fn observe(&mut self, failure: Option<&SignError>) {
        if failure.is_some() {
            self.failures += 1;
            return;
        }
        let Self { failures, reported } = std::mem::take(self);
        if !reported.is_empty() {
            tracing::info!(failures, "certificate signing recovered");
        }
    }

    /// Whether this reason should be logged: true once per reason and outage.
    pub(super) fn should_report(&mut self, reason: &str) -> bool {
        self.reported.len() < MAX_REASONS && self.reported.insert(reason.to_owned())
    }
}
