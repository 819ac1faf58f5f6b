//! Logging in ztunnel's formats: tab-separated text, or one JSON object per line, with a filter that can be changed at run
//! time. Lines are written to standard output by a thread of their own (`queue`).

mod line;
mod queue;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Scope};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, reload};

use self::line::{Fields, Prefix};
use self::queue::Queue;
use crate::metrics::Registry;

/// Target of the access log.
const ACCESS: &str = "access";

/// Format of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `time\tlevel\tscope\tmessage\tkey=value …`
    #[default]
    Text,
    /// One object per line: `level`, `time`, `scope`, `message`, then the fields.
    Json,
}

/// Why a filter is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log filter {filter:?} is not a list of level, scope=level or scope:level: {reason}")]
pub struct BadFilter {
    filter: String,
    reason: String,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The filter is invalid.
    #[error(transparent)]
    Filter(#[from] BadFilter),
    /// The writer thread could not be started.
    #[error("log thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// Handle of the running log: changes its filter and flushes it. Clones share it.
#[derive(Clone)]
pub struct Handle {
    apply: Arc<dyn Fn(Targets) + Send + Sync>,
    filter: Arc<Mutex<String>>,
    queue: Queue,
}

/// Installs the process' subscriber. [`Handle::flush`] before the process exits.
///
/// # Errors
/// When the filter is invalid, or the writer thread cannot be started.
pub fn init(format: Format, filter: &str) -> Result<Handle, InitError> {
    let (layer, reload) = reload::Layer::new(parse(filter)?);
    let queue = Queue::default();
    let lines = Lines(format, queue.clone());
    // A second subscriber in one process (tests) leaves the first in place.
    if tracing_subscriber::registry().with(lines.with_filter(layer)).try_init().is_ok() {
        queue.start(std::io::stdout(), move |count| lost(format, count))?;
    }
    let apply = move |targets| {
        let _ = reload.reload(targets);
    };
    Ok(Handle { apply: Arc::new(apply), filter: Arc::new(Mutex::new(filter.to_owned())), queue })
}

/// The line that reports dropped lines.
fn lost(format: Format, count: u64) -> String {
    let message = "dropped log lines, the reader of standard output was too slow";
    Fields::with_number(format, message, "lines", count).line(&Prefix {
        time: SystemTime::now(),
        level: Level::WARN,
        scope: "log",
    })
}

/// Reads `info`, `access=debug,info` and `access:debug,info`.
///
/// # Errors
/// When an entry is neither a level nor a scope with a level.
pub fn parse(filter: &str) -> Result<Targets, BadFilter> {
    let bad = |reason: String| BadFilter { filter: filter.to_owned(), reason };
    let mut entries = Vec::new();
    for entry in filter.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        // `a::b:level` must not be split inside the module path.
        let cut = entry.rfind(':').filter(|at| !entry[..*at].ends_with(':') && !entry.contains('='));
        entries.push(
            cut.map_or_else(|| entry.to_owned(), |at| format!("{}={}", &entry[..at], &entry[at + 1..])),
        );
    }
    if entries.is_empty() {
        return Err(bad("it is empty".to_owned()));
    }
    for entry in &entries {
        let level = entry.rsplit('=').next().unwrap_or_default();
        if tracing_subscriber::filter::LevelFilter::from_str(level).is_err() {
            return Err(bad(format!("{level:?} is not one of off, error, warn, info, debug, trace")));
        }
    }
    // Lines show `proxy::outbound` where the target is `isthmus_proxy::outbound`: a filter may be written either way.
    let by_shown_scope: Vec<String> = entries
        .iter()
        .filter(|entry| entry.contains('='))
        .flat_map(|entry| [format!("isthmus_{entry}"), format!("isthmus::{entry}")])
        .collect();
    entries.extend(by_shown_scope);
    // It warns of each attempt to read what is forbidden, which our own watches report once.
    if !entries.iter().any(|entry| entry.starts_with("kube_runtime")) {
        entries.push("kube_runtime::watcher=error".to_owned());
    }
    Targets::from_str(&entries.join(",")).map_err(|error| bad(error.to_string()))
}

// === impl Handle ===

impl Handle {
    /// Replaces the filter.
    ///
    /// # Errors
    /// When the filter does not parse; the old one stays.
    pub fn set(&self, filter: &str) -> Result<(), BadFilter> {
        (self.apply)(parse(filter)?);
        *self.filter.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_owned();
        Ok(())
    }

    /// The current filter, as it was set.
    #[must_use]
    pub fn current(&self) -> String {
        self.filter.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until everything logged so far is written, at most `timeout`; returns whether it is.
    #[must_use = "lines that were not written are lost"]
    pub fn flush(&self, timeout: Duration) -> bool {
        self.queue.flush(timeout)
    }

    /// Registers the counter of dropped lines.
    pub fn register(&self, registry: &Registry) {
        let help = "Log lines dropped because the reader of standard output was too slow";
        registry.register("isthmus_log_lines_dropped", help, self.queue.dropped());
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Handle").field(&self.current()).finish()
    }
}

/// The layer that writes lines.
struct Lines(Format, Queue);

/// The fields of a span, kept with it for the lines inside of it.
struct SpanFields(Fields);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Fields::new(self.0);
        attributes.record(&mut fields);
        span.extensions_mut().insert(SpanFields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(SpanFields(fields)) = span.extensions_mut().get_mut() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::for_event(self.0);
        event.record(&mut fields);
        let meta = event.metadata();
        // The keys of an access log line and their order are a contract.
        if meta.target() != ACCESS {
            let own = fields.len();
            for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
                if let Some(SpanFields(outer)) = span.extensions().get() {
                    fields.inherit(outer, own);
                }
            }
        }
        let prefix = Prefix { time: SystemTime::now(), level: *meta.level(), scope: scope(meta.target()) };
        self.1.push(&fields.line(&prefix));
    }
}

/// Our crates are named by what they do: `isthmus_proxy::inbound` logs as `proxy::inbound`.
fn scope(target: &str) -> &str {
    target.strip_prefix("isthmus_").or_else(|| target.strip_prefix("isthmus::")).unwrap_or(target)
}

/// RFC 3339 in UTC with microseconds. A clock before 1970 shows as 1970.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    rfc3339(time).to_string()
}

fn rfc3339(time: SystemTime) -> impl fmt::Display {
    humantime::format_rfc3339_micros(time.max(UNIX_EPOCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::time::Duration;

    #[test]
    fn a_filter_takes_the_scope_as_lines_show_it() {
        let debug = &Level::DEBUG;
        for filter in
            ["info,proxy::outbound=debug", "info,proxy::outbound:debug", "isthmus_proxy::outbound=debug"]
        {
            let targets = parse(filter).unwrap();
            assert!(!targets.would_enable("kube_runtime::watcher", &Level::WARN), "{filter}");
            assert!(targets.would_enable("isthmus_proxy::outbound::connect", debug), "{filter}");
            assert!(!targets.would_enable("isthmus_proxy::inbound", debug), "{filter}");
        }
        assert!(parse("role=debug").unwrap().would_enable("isthmus::role::agent", debug));
    }

    /// Lines of a span's inside, as the layer writes them.
    fn lines_of(format: Format, log: impl FnOnce()) -> Vec<String> {
        let queue = Queue::default();
        let subscriber = tracing_subscriber::registry().with(Lines(format, queue.clone()));
        tracing::subscriber::with_default(subscriber, log);
        queue.take_all()
    }

    #[test]
    fn lines_inherit_the_fields_of_their_spans() {
        let log = || {
            let pod =
                tracing::info_span!("pod", namespace = "sample", name = "web-1", uid = tracing::field::Empty);
            let _pod = pod.enter();
            pod.record("uid", 7);
            let _connection = tracing::info_span!("connection", src = "a", name = "inner").entered();
            tracing::info!(src = "own", "refused");
            tracing::info!(target: "access", src = "own", "connection complete");
        };
        let text = lines_of(Format::Text, log);
        assert!(
            text[0].ends_with("refused\tsrc=\"own\" namespace=\"sample\" name=\"inner\" uid=7\n"),
            "{text:?}"
        );
        assert!(text[1].ends_with("connection complete\tsrc=\"own\"\n"), "{text:?}");
        let json = lines_of(Format::Json, log);
        let line: Value = serde_json::from_str(&json[0]).unwrap();
        assert_eq!((&line["src"], &line["name"], &line["uid"]), (&"own".into(), &"inner".into(), &7.into()));
        assert_eq!(line["message"], "refused");
    }

    #[test]
    fn both_separators_of_a_scope_are_read() {
        assert_eq!(parse("access:debug,info").unwrap(), parse("access=debug,info").unwrap());
        assert!(parse("a::b:debug").unwrap().would_enable("a::b", &Level::DEBUG));
        assert!(parse("loud").unwrap_err().to_string().contains("loud"));
        assert!(parse("").is_err());
    }

    #[test]
    fn timestamps_are_rfc_3339_with_microseconds() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_787_479_200), "2026-08-23T10:00:00.000000Z");
    }

    #[test]
    fn lines_are_text_or_json() {
        let log = || {
            let (addr, nothing): (_, Option<&str>) = (tracing::field::display("10.0.0.1:1"), None);
            tracing::event!(
                target: "access",
                Level::INFO,
                src.addr = addr,
                src.workload = "a\"b",
                nothing,
                bytes_sent = 3,
                delta = -1,
                open = true,
                odd = ?"\n",
                "connection complete"
            );
        };
        let text = &lines_of(Format::Text, log)[0];
        let (time, rest) = text.split_once('\t').unwrap();
        assert!(time.ends_with('Z') && time.len() == 27, "{time}");
        assert_eq!(
            rest,
            "info\taccess\tconnection complete\t\
             src.addr=10.0.0.1:1 src.workload=\"a\\\"b\" bytes_sent=3 delta=-1 open=true odd=\"\\n\"\n"
        );
        let json = &lines_of(Format::Json, log)[0];
        assert!(json.starts_with("{\"level\":\"info\",\"time\":\"") && json.ends_with("}\n"), "{json}");
        let json: Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["src.addr"], "10.0.0.1:1");
        assert_eq!(json["src.workload"], "a\"b");
        assert_eq!(json["odd"], "\"\\n\"");
        assert_eq!(
            (&json["bytes_sent"], &json["delta"], &json["open"]),
            (&3.into(), &(-1).into(), &true.into())
        );
        assert_eq!((&json["scope"], &json["message"]), (&"access".into(), &"connection complete".into()));
    }

    #[test]
    fn a_text_of_a_peer_begins_no_line_of_its_own() {
        let text = "no\n2026\terror\tforged\u{2028}\r\u{1b}[2J ü";
        let log = || {
            tracing::info!(displayed = %text, written = text, "a message of {text}");
            tracing::info!("{text}");
        };
        for format in [Format::Text, Format::Json] {
            for line in lines_of(format, log) {
                let controls = line.trim_end_matches('\n').chars().filter(|char| char.is_control());
                // The three separators of the text format.
                let allowed = if format == Format::Text { 4 } else { 0 };
                assert!(controls.clone().all(|char| char == '\t') && controls.count() <= allowed, "{line:?}");
                assert!(line.contains("forged") && line.contains('ü') && line.ends_with('\n'), "{line:?}");
            }
        }
    }

    #[test]
    fn the_line_about_lost_lines_is_in_both_formats() {
        assert!(lost(Format::Text, 7).ends_with(
            "\twarn\tlog\tdropped log lines, the reader of standard output was too slow\tlines=7\n"
        ));
        let json: Value = serde_json::from_str(&lost(Format::Json, 7)).unwrap();
        assert_eq!((&json["lines"], &json["level"]), (&7.into(), &"warn".into()));
    }
}
