//! `/logging`: shows and changes the log filter of the running process. Both `scope:level` (as istioctl documents it)
//! and `scope=level` are understood.

use isthmus_rt::log::Handle;

use crate::query;

/// Levels that the index page offers; trace would slow the process down.
pub(crate) const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

/// The HTTP response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

const USAGE: &str = "usage: POST /logging\t\t\t\t(to show the current level)\n\
usage: POST /logging?level=<level>\t\t(to change the level: off, error, warn, info, debug, trace)\n\
usage: POST /logging?level=<scope>:<level>,...\t(to change the level of some scopes)\n\
usage: POST /logging?reset\t\t\t(to go back to the level of the start)\n";

/// The log handle, and the initial filter for `reset`.
#[derive(Debug, Clone)]
pub struct Logging {
    handle: Handle,
    initial: String,
}

impl Logging {
    /// Remembers the current filter as the one to reset to.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        let initial = handle.current();
        Self { handle, initial }
    }

    pub(crate) fn handle(&self, post: bool, query: &str) -> Answer {
        if !post {
            return Answer { status: 405, body: format!("only POST is allowed\n{USAGE}") };
        }
        let found = |key: &str| query::pairs(query).find_map(|(k, value)| (k == key).then_some(value));
        let level = found("level").unwrap_or_default();
        let reset = found("reset").is_some();
        let base = if reset { self.initial.clone() } else { self.handle.current() };
        let wanted = match (level.is_empty(), reset) {
            (true, false) => return self.show(),
            (true, true) => base,
            (false, _) => merge(&base, &level),
        };
        match self.handle.set(&wanted) {
            Ok(()) => self.show(),
            Err(_) => Answer { status: 400, body: format!("Invalid level provided: {level}\n{USAGE}") },
        }
    }

    /// The filter in force.
    pub(crate) fn current(&self) -> String {
        self.handle.current()
    }

    fn show(&self) -> Answer {
        Answer { status: 200, body: format!("current log level is {}\n", self.handle.current()) }
    }
}

/// Adds entries to a filter: a bare level replaces the bare level, a scope's level replaces that scope's.
fn merge(base: &str, added: &str) -> String {
    let normal = |entry: &str| match entry.rfind(':') {
        Some(at) if !entry.contains('=') => format!("{}={}", &entry[..at], &entry[at + 1..]),
        _ => entry.to_owned(),
    };
    let scope = |entry: &str| entry.split_once('=').map(|(scope, _)| scope.to_owned());
    let split =
        |text: &str| text.split(',').map(str::trim).filter(|e| !e.is_empty()).map(normal).collect::<Vec<_>>();
    let mut entries = split(base);
    for entry in split(added) {
        entries.retain(|held| scope(held) != scope(&entry));
        entries.push(entry);
    }
    entries.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_shown_changed_and_reset() {
        let logging = Logging::new(isthmus_rt::log::init(isthmus_rt::log::Format::Text, "info").unwrap());
        let post = |query: &str| logging.handle(true, query);
        assert_eq!(post("").body, "current log level is info\n");
        assert_eq!(post("level=access:debug").body, "current log level is info,access=debug\n");
        assert_eq!(post("level=access%3Dwarn,debug").body, "current log level is access=warn,debug\n");
        assert_eq!(post("level=info&reset").body, "current log level is info\n");
        let bad = post("level=loud");
        assert_eq!(bad.status, 400);
        assert!(bad.body.starts_with("Invalid level provided: loud\n"));
        assert_eq!(post("").body, "current log level is info\n");
        assert_eq!(logging.handle(false, "").status, 405);
    }
}
