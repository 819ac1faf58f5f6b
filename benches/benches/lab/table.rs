//! The rows of one measurement: rounds, medians, ratios, as plain text.

use std::fmt;

use isthmus_benches::median;

/// A column.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    digits: usize,
    /// The column of which this one shows the difference to direct.
    over_direct: Option<usize>,
}

impl Column {
    pub(crate) const fn new(name: &'static str, digits: usize) -> Self {
        Self { name, digits, over_direct: None }
    }

    pub(crate) const fn over_direct(name: &'static str, digits: usize, of: usize) -> Self {
        Self { name, digits, over_direct: Some(of) }
    }

    fn show(&self, figure: f64) -> String {
        number(figure, self.digits)
    }
}

/// A figure, or a dash for what is not known.
pub(crate) fn number(figure: f64, digits: usize) -> String {
    if figure.is_finite() { format!("{figure:.digits$}") } else { "–".to_owned() }
}

/// A measurement and its figures.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    title: &'static str,
    pub(crate) congestion: String,
    columns: &'static [Column],
    /// A subject and its rounds.
    rows: Vec<(&'static str, Vec<Vec<f64>>)>,
}

impl Table {
    pub(crate) fn new(
        name: &'static str,
        title: &'static str,
        congestion: &str,
        columns: &'static [Column],
    ) -> Self {
        Self { name, title, congestion: congestion.to_owned(), columns, rows: Vec::new() }
    }

    /// Adds a round of a subject.
    pub(crate) fn add(&mut self, subject: &'static str, figures: Vec<f64>) {
        match self.rows.iter_mut().find(|(name, _)| *name == subject) {
            Some((_, rounds)) => rounds.push(figures),
            None => self.rows.push((subject, vec![figures])),
        }
    }

    /// Adds a round of which only one column counts.
    pub(crate) fn add_only(&mut self, subject: &'static str, column: &str, figures: &[f64]) {
        let of_column =
            |(column_of, figure): (&Column, &f64)| if column_of.name == column { *figure } else { f64::NAN };
        self.add(subject, self.columns.iter().zip(figures).map(of_column).collect());
    }

    /// One round in one line.
    pub(crate) fn line(&self, subject: &str, figures: &[f64]) -> String {
        let known = self.columns.iter().zip(figures).filter(|(_, figure)| figure.is_finite());
        let shown: Vec<_> =
            known.map(|(column, figure)| format!("{} {}", column.show(*figure), column.name)).collect();
        format!("{}, {subject}: {}", self.name, shown.join(", "))
    }

    /// A subject's median of a column, over the rounds that know it; not a number when none does.
    pub(crate) fn median(&self, subject: &str, column: usize) -> f64 {
        if let Some(of) = self.columns.get(column).and_then(|column| column.over_direct) {
            return if subject == "direct" {
                f64::NAN
            } else {
                self.median(subject, of) - self.median("direct", of)
            };
        }
        let rounds = self.rows.iter().find(|(name, _)| *name == subject).map(|(_, rounds)| rounds);
        let known: Vec<f64> = rounds
            .into_iter()
            .flatten()
            .filter_map(|round| round.get(column).copied())
            .filter(|figure| figure.is_finite())
            .collect();
        median(&known).unwrap_or(f64::NAN)
    }

    /// The place of a column.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    fn cells(&self) -> Vec<Vec<String>> {
        let mut cells = vec![
            std::iter::once(String::new())
                .chain(self.columns.iter().map(|column| column.name.to_owned()))
                .collect(),
        ];
        for (subject, _) in &self.rows {
            let shown =
                self.columns.iter().enumerate().map(|(at, column)| column.show(self.median(subject, at)));
            cells.push(std::iter::once((*subject).to_owned()).chain(shown).collect());
        }
        for other in ["ztunnel", "direct"] {
            if self.rows.iter().any(|(subject, _)| *subject == other) {
                let ratio = |at| number(self.median("isthmus", at) / self.median(other, at), 2);
                let ratios = (0..self.columns.len()).map(ratio);
                cells.push(std::iter::once(format!("isthmus/{other}")).chain(ratios).collect());
            }
        }
        cells
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}; {}", self.title, self.congestion)?;
        write_aligned(f, &self.cells())
    }
}

/// Writes cells below each other, the first column to the left and the others to the right.
pub(crate) fn write_aligned(f: &mut impl fmt::Write, cells: &[Vec<String>]) -> fmt::Result {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| cells.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|at| width(at).unwrap_or(0)).collect();
    for row in cells {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let width = widths[at];
            line += &if at == 0 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
        }
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
