//! One line of the log: fields are encoded as they are visited, straight into the text that is shown. It must not know
//! where the line is written to.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::time::SystemTime;

use tracing::Level;
use tracing::field::{Field, Visit};

use super::{Format, rfc3339};

/// Room for the fields of an access log line.
const FIELDS: usize = 24;
const VALUES: usize = 512;

/// The fields of an event or a span.
#[derive(Debug)]
pub(super) struct Fields {
    format: Format,
    message: String,
    /// Encoded values, one behind the other.
    values: String,
    /// Keys, and where their values are.
    keys: Vec<(&'static str, Range<usize>)>,
}

/// What a line says of itself, before its message and fields.
pub(super) struct Prefix<'a> {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) scope: &'a str,
}

// === impl Fields ===

impl Fields {
    pub(super) fn new(format: Format) -> Self {
        Self { format, message: String::new(), values: String::new(), keys: Vec::new() }
    }

    /// With room for the fields of an access log line.
    pub(super) fn for_event(format: Format) -> Self {
        let (values, keys) = (String::with_capacity(VALUES), Vec::with_capacity(FIELDS));
        Self { values, keys, ..Self::new(format) }
    }

    /// A message with one number, for a line that is no event.
    pub(super) fn with_number(format: Format, message: &str, key: &'static str, number: u64) -> Self {
        let values = number.to_string();
        Self { message: message.to_owned(), keys: vec![(key, 0..values.len())], values, format }
    }

    /// Number of fields, without the message.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Adds the fields of a span, outer spans first. The first `own` fields are the line's and stay; a field of an inner
    /// span replaces one of the same name of an outer span.
    pub(super) fn inherit(&mut self, span: &Self, own: usize) {
        for (key, value) in &span.keys {
            let known = self.keys.iter().position(|(known, _)| known == key);
            if known.is_some_and(|at| at < own) {
                continue;
            }
            let start = self.values.len();
            self.values.push_str(&span.values[value.clone()]);
            let value = start..self.values.len();
            match known {
                Some(at) => self.keys[at].1 = value,
                None => self.keys.push((key, value)),
            }
        }
    }

    /// The line, with its end.
    pub(super) fn line(&self, prefix: &Prefix<'_>) -> String {
        // For each field a separator, an equals sign or colon, and quotes.
        let keys: usize = self.keys.iter().map(|(key, _)| key.len() + 4).sum();
        let mut line = String::with_capacity(128 + self.message.len() + keys + self.values.len());
        // Writing to a string cannot fail.
        let _ = match self.format {
            Format::Text => self.text(prefix, &mut line),
            Format::Json => self.json(prefix, &mut line),
        };
        line
    }

    fn text(&self, prefix: &Prefix<'_>, line: &mut String) -> fmt::Result {
        let Prefix { time, level, scope } = prefix;
        write!(line, "{}\t{}\t{scope}\t{}", rfc3339(*time), lower(*level), self.message)?;
        let mut separator = '\t';
        for (key, value) in &self.keys {
            line.push(std::mem::replace(&mut separator, ' '));
            line.push_str(key);
            line.push('=');
            line.push_str(&self.values[value.clone()]);
        }
        line.push('\n');
        Ok(())
    }

    fn json(&self, prefix: &Prefix<'_>, line: &mut String) -> fmt::Result {
        let Prefix { time, level, scope } = prefix;
        write!(line, "{{\"level\":\"{}\",\"time\":\"{}\",\"scope\":", lower(*level), rfc3339(*time))?;
        push_quoted(line, scope);
        line.push_str(",\"message\":");
        push_quoted(line, &self.message);
        for (key, value) in &self.keys {
            // Keys are identifiers with dots.
            line.push_str(",\"");
            line.push_str(key);
            line.push_str("\":");
            line.push_str(&self.values[value.clone()]);
        }
        line.push_str("}\n");
        Ok(())
    }

    /// Encodes one value with `write`.
    fn push(&mut self, field: &Field, write: impl FnOnce(&mut String)) {
        if field.name() == "message" {
            self.message.clear();
            return write(&mut self.message);
        }
        let start = self.values.len();
        write(&mut self.values);
        self.keys.push((field.name(), start..self.values.len()));
    }

    fn push_displayed(&mut self, field: &Field, value: impl fmt::Display) {
        self.push(field, |text| {
            // Fails when the value's own formatting does; what it wrote is shown.
            let _ = write!(text, "{value}");
        });
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // What is displayed rather than quoted (addresses) stays unquoted in the text format.
        let quoted = self.format == Format::Json && field.name() != "message";
        let plain = self.format == Format::Text;
        self.push(field, |text| {
            let start = text.len();
            let _ = write!(text, "{value:?}");
            if quoted {
                let value = text.split_off(start);
                push_quoted(text, &value);
            } else if plain {
                escape_controls(text, start);
            }
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let (is_message, plain) = (field.name() == "message", self.format == Format::Text);
        self.push(field, |text| {
            let start = text.len();
            if is_message {
                text.push_str(value)
            } else {
                push_quoted(text, value)
            }
            if plain {
                escape_controls(text, start);
            }
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push_displayed(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push_displayed(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push_displayed(field, value);
    }
}

/// Escapes control characters from `start` on: what a peer or the control plane sent is part of many texts, and a line break in
/// it would begin a line of its choice.
fn escape_controls(text: &mut String, start: usize) {
    let is_control = |char: char| char.is_control() || matches!(char, '\u{2028}' | '\u{2029}');
    if !text[start..].contains(is_control) {
        return;
    }
    let value = text.split_off(start);
    for char in value.chars() {
        if is_control(char) { text.extend(char.escape_default()) } else { text.push(char) }
    }
}

/// A JSON string.
fn push_quoted(text: &mut String, value: &str) {
    if value.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        // Fails for no string.
        text.push_str(&serde_json::to_string(value).unwrap_or_default());
    } else {
        text.push('"');
        text.push_str(value);
        text.push('"');
    }
}

fn lower(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}
