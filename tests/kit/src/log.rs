//! Log lines as tests want them: their fields, kept. It listens like any subscriber; for whom is up to the test.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps the lines of one scope, or of all. Clones share them.
///
/// Whether a kind of line is written at all is decided once for all threads, by whoever writes one first: a test that
/// listens needs a process of its own, or a second listener so that each time everybody is asked.
#[derive(Debug, Clone, Default)]
pub struct Lines {
    scope: Option<&'static str>,
    lines: Arc<Mutex<Vec<Line>>>,
}

/// The fields of a line as `key=value`, behind `level=…`.
pub type Line = Vec<String>;

struct Fields(Line);

impl Lines {
    /// Of this scope only.
    #[must_use]
    pub fn of(scope: &'static str) -> Self {
        Self { scope: Some(scope), ..Self::default() }
    }

    /// The lines so far.
    #[must_use]
    pub fn all(&self) -> Vec<Line> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first line that is wanted, taken out.
    #[must_use]
    pub fn take(&self, wanted: impl Fn(&Line) -> bool) -> Option<Line> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let at = lines.iter().position(wanted)?;
        Some(lines.remove(at))
    }

    /// Forgets the lines so far.
    pub fn clear(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push(format!("{}={value:?}", field.name()));
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.scope.is_none_or(|scope| metadata.target() == scope)
    }
    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(vec![format!("level={}", event.metadata().level())]);
        event.record(&mut fields);
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(fields.0);
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
