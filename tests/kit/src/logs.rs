//! Captures the log events (`tracing`) of the current thread, as a test reads them: level, target and fields.
//!
//! It sees what code on the same thread logs, so a test that spawns tasks runs on a runtime of one thread. It formats
//! nothing as the agent does: the line format has its own tests in `isthmus-rt`.

use std::fmt;
use std::sync::{Arc, LazyLock};

use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

use crate::wait::LIMIT;

/// One log event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEvent {
    /// Its level.
    pub level: Level,
    /// Its target: the module, unless the event names another.
    pub target: &'static str,
    /// The message, then every field in the order in which it was declared, as `key=value`. Strings are quoted; values
    /// recorded with `%` are not.
    pub fields: Vec<String>,
}

/// Collects the events of the current thread for as long as it lives.
pub struct LogCapture {
    events: Arc<watch::Sender<Vec<LogEvent>>>,
    _default: DefaultGuard,
}

struct Collector {
    accepts: fn(&Metadata<'_>) -> bool,
    events: Arc<watch::Sender<Vec<LogEvent>>>,
}

struct Fields(Vec<String>);

// === impl LogEvent ===

impl LogEvent {
    /// Whether the text of the line contains `part`.
    #[must_use]
    pub fn contains(&self, part: &str) -> bool {
        self.to_string().contains(part)
    }
}

impl fmt::Display for LogEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.level, self.target, self.fields.join(" "))
    }
}

// === impl LogCapture ===

impl LogCapture {
    /// Captures the events that `accepts` admits, by their level and target.
    #[must_use]
    pub fn start(accepts: fn(&Metadata<'_>) -> bool) -> Self {
        // With a single dispatcher in the process, tracing lets the thread that first reaches a log statement decide,
        // for all threads, whether that statement is enabled. A second one makes it ask every dispatcher.
        static SECOND: LazyLock<Dispatch> =
            LazyLock::new(|| Dispatch::new(Collector { accepts: |_| true, events: Arc::default() }));
        LazyLock::force(&SECOND);
        let events = Arc::<watch::Sender<Vec<LogEvent>>>::default();
        let collector = Collector { accepts, events: Arc::clone(&events) };
        Self { events, _default: tracing::subscriber::set_default(collector) }
    }

    /// The events so far that have not been taken.
    #[must_use]
    pub fn events(&self) -> Vec<LogEvent> {
        self.events.borrow().clone()
    }

    /// Removes the events so far and returns them.
    pub fn take(&self) -> Vec<LogEvent> {
        self.events.send_replace(Vec::new())
    }

    /// Waits for the next event that `matches` and removes it.
    ///
    /// # Panics
    /// When there is none within [`LIMIT`].
    pub async fn next(&self, matches: impl Fn(&LogEvent) -> bool) -> LogEvent {
        let mut events = self.events.subscribe();
        let logged = events.wait_for(|events| events.iter().any(&matches));
        let in_time = tokio::time::timeout(LIMIT, logged).await.is_ok();
        let mut found = None;
        self.events.send_modify(|events| {
            found = events.iter().position(&matches).map(|at| events.remove(at));
        });
        match found {
            Some(event) if in_time => event,
            _ => panic!("no such event within {LIMIT:?}; others: {:?}", self.events()),
        }
    }
}

// === impl Collector ===

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Events, and the question of `tracing::enabled!` whether there would be one.
        !metadata.is_span() && (self.accepts)(metadata)
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields(Vec::new());
        event.record(&mut fields);
        let metadata = event.metadata();
        let event = LogEvent { level: *metadata.level(), target: metadata.target(), fields: fields.0 };
        self.events.send_modify(|events| events.push(event));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

// === impl Fields ===

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{}={value:?}", field.name());
        // The macros record the message first or last, depending on how it is written.
        let at = if field.name() == "message" { 0 } else { self.0.len() };
        self.0.insert(at, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_have_their_message_first_and_are_taken_once() {
        let log = LogCapture::start(|metadata| *metadata.level() <= Level::INFO);
        tracing::debug!("not admitted");
        tracing::info!(target: "access", peer = %"10.0.0.1", name = "a", "connection opened");
        let event = log.next(|event| event.target == "access").await;
        assert_eq!(event.fields, ["message=connection opened", "peer=10.0.0.1", "name=\"a\""]);
        assert!(event.contains("INFO access: message=connection opened"), "{event}");
        assert_eq!(log.take(), []);
    }
}
