//! The time of day as this crate reads it, so that tests can put a paused clock in its place.

use std::sync::Arc;
use std::time::SystemTime;

/// Source of the current time of day.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(SystemTime::now)
}
