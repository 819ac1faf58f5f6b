//! When an installation that was undone by another program is repaired: at once the first time, then no more often than
//! every five seconds, with a warning from the sixth time on. Pure: it is told the time.

use std::time::Duration;

use tokio::time::Instant;

/// Least time between two repairs.
pub(crate) const BETWEEN: Duration = Duration::from_secs(5);
/// Repairs in a row from which on there is a warning.
const WARN_FROM: u32 = 6;
/// An installation that lasted this long was not undone by a program that does so all the time.
const LASTED: Duration = Duration::from_secs(60);

/// What to do about an installation that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Repair it now. `row` counts the repairs in a row, this one included.
    Repair {
        /// How many.
        row: u32,
        /// Whether that is worth a warning.
        warn: bool,
    },
    /// Look again at this time.
    At(Instant),
}

/// The repairs so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    last: Option<Instant>,
    row: u32,
}

impl Pace {
    /// Decides at `now` about an installation that has to be repaired, and counts a repair.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if let Some(last) = self.last {
            if now < last + BETWEEN {
                return Next::At(last + BETWEEN);
            }
            if now >= last + LASTED {
                self.row = 0;
            }
        }
        self.last = Some(now);
        self.row += 1;
        Next::Repair { row: self.row, warn: self.row >= WARN_FROM }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_five_seconds_apart_and_the_sixth_in_a_row_warns() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let repair = |row, warn| Next::Repair { row, warn };
        let rows = [
            (0, repair(1, false)),
            (1, Next::At(at(5))),
            (4, Next::At(at(5))),
            (5, repair(2, false)),
            (10, repair(3, false)),
            (15, repair(4, false)),
            (20, repair(5, false)),
            (24, Next::At(at(25))),
            (25, repair(6, true)),
            (30, repair(7, true)),
            // It has lasted for a minute: another cause.
            (90, repair(1, false)),
            (149, repair(2, false)),
        ];
        let mut pace = Pace::default();
        for (seconds, want) in rows {
            assert_eq!(pace.next(at(seconds)), want, "{seconds}");
        }
    }
}
