//! What the data path is meant to reach, as ratios to ztunnel in the same run, and whether it does.

use Bound::{Absolute, AtLeast, AtMost};

use crate::table::{Table, number, write_aligned};

/// A goal for one column of one measurement.
struct Goal {
    what: &'static str,
    measurement: &'static str,
    column: &'static str,
    bound: Bound,
}

/// Ratios to ztunnel under bbr and under cubic, or a figure of its own.
enum Bound {
    AtLeast(f64, f64),
    AtMost(f64, f64),
    Absolute(f64),
}

const GOALS: [Goal; 11] = [
    goal("one stream", "up", "Gbit/s", AtLeast(1.3, 1.45)),
    goal("one stream, reverse", "down", "Gbit/s", AtLeast(1.3, 1.45)),
    goal("8 streams", "streams", "Gbit/s", AtLeast(1.5, 1.7)),
    goal("CPU per GB", "up", "CPU s/GB", AtMost(0.75, 0.65)),
    goal("1 KiB round trip, p50 over direct", "trips 1K", "p50 over direct µs", AtMost(0.6, 0.6)),
    goal("requests/s, 64 connections", "requests 64", "requests/s", AtLeast(1.6, 1.6)),
    goal("CPU per request", "requests 64", "CPU µs each", AtMost(0.5, 0.5)),
    goal("new connections/s", "connections", "connections/s", AtLeast(1.7, 1.7)),
    goal("CPU per connection", "connections", "CPU µs each", AtMost(0.5, 0.5)),
    goal("idle connection, client's agent, KiB", "idle", "client's agent, KiB each", Absolute(6.0)),
    goal("idle connection, server's agent, KiB", "idle", "server's agent, KiB each", Absolute(6.0)),
];

const fn goal(what: &'static str, measurement: &'static str, column: &'static str, bound: Bound) -> Goal {
    Goal { what, measurement, column, bound }
}

impl Goal {
    /// What is to be reached, what was, and whether that is enough.
    fn row(&self, table: &Table) -> Vec<String> {
        let column = table.column(self.column).unwrap_or(usize::MAX);
        let (ours, theirs) = (table.median("isthmus", column), table.median("ztunnel", column));
        let under = |bbr: f64, cubic: f64| if table.congestion == "cubic" { cubic } else { bbr };
        let (goal, figure, reached) = match self.bound {
            AtLeast(bbr, cubic) => {
                let bound = under(bbr, cubic);
                (format!("≥ {bound}"), ours / theirs, ours / theirs >= bound)
            }
            AtMost(bbr, cubic) => {
                let bound = under(bbr, cubic);
                (format!("≤ {bound}"), ours / theirs, ours / theirs <= bound)
            }
            Absolute(bound) => (format!("≤ {bound} KiB"), ours, ours <= bound),
        };
        let verdict = match (figure.is_finite(), reached) {
            (false, _) => "not measured",
            (true, true) => "reached",
            (true, false) => "not reached",
        };
        let direct = number(ours / table.median("direct", column), 2);
        [self.what, &goal, &number(figure, 2), verdict, &direct].map(str::to_owned).into()
    }
}

/// The goals of everything that was measured.
pub(crate) fn summary(tables: &[Table]) -> String {
    let of =
        |goal: &Goal| tables.iter().find(|table| table.name == goal.measurement).map(|table| goal.row(table));
    let mut cells = vec![["", "goal", "isthmus/ztunnel", "", "isthmus/direct"].map(str::to_owned).into()];
    cells.extend(GOALS.iter().filter_map(of));
    let congestion = tables.first().map_or("", |table| table.congestion.as_str());
    let mut text = format!("\ngoals, ratios of this run; {congestion}\n");
    // Writing to a string does not fail.
    let _ = write_aligned(&mut text, &cells);
    text
}
