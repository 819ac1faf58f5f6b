//! Metrics of hand-overs.

use std::sync::Arc;
use std::time::Duration;

use isthmus_rt::metrics::{Family, Registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

/// What became of connections, as this process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The successor has them.
    HandedOver,
    /// This process took them over.
    TakenOver,
    /// The successor refused them; they go on here and are drained.
    Refused,
    /// The successor was lost before they were its own; they go on here and are drained.
    Returned,
    /// They did not come to rest, or are of a kind that is not handed over; they are drained.
    Kept,
}

/// Every family of this crate.
#[derive(Debug)]
pub struct Metrics {
    connections: Family<Vec<(&'static str, &'static str)>, Counter>,
    seconds: Histogram,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::HandedOver => "handed_over",
            Self::TakenOver => "taken_over",
            Self::Refused => "refused",
            Self::Returned => "returned",
            Self::Kept => "kept",
        }
    }
}

impl Metrics {
    /// Registers the families.
    #[must_use]
    pub fn register(registry: &Registry) -> Arc<Self> {
        let bounds = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];
        let new = Self { connections: Family::default(), seconds: Histogram::new(bounds) };
        registry.register(
            "isthmus_handover_connections",
            "Connections at a hand-over between two agents of a node, by what became of them",
            new.connections.clone(),
        );
        registry.register(
            "isthmus_handover_seconds",
            "How long connections stood still at a hand-over, as the agent that gave them away sees it",
            new.seconds.clone(),
        );
        Arc::new(new)
    }

    /// Counts connections.
    pub fn count(&self, outcome: Outcome, connections: usize) {
        let counter = self.connections.get_or_create(&vec![("result", outcome.as_str())]);
        counter.inc_by(u64::try_from(connections).unwrap_or(u64::MAX));
    }

    pub(crate) fn paused(&self, pause: Duration) {
        self.seconds.observe(pause.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_their_names() {
        let registry = Registry::default();
        let metrics = Metrics::register(&registry);
        metrics.count(Outcome::HandedOver, 3);
        metrics.paused(Duration::from_millis(3));
        let text = registry.encode().unwrap();
        for line in [
            "isthmus_handover_connections_total{result=\"handed_over\"} 3",
            "isthmus_handover_seconds_bucket{le=\"0.005\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
