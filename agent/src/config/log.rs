//! Settings of the log: format and filter.

use isthmus_rt::log::Format;

use super::source::{ConfigErrors, Reader, Strings};

/// Format and filter of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Text or JSON lines (`LOG_FORMAT`).
    pub format: Format,
    /// The filter (`RUST_LOG`).
    pub filter: String,
}

/// Reads the log settings alone: the log is started before anything else.
///
/// # Errors
/// Every bad value.
pub fn read(strings: &dyn Strings) -> Result<LogConfig, ConfigErrors> {
    let mut reader = Reader::new(strings);
    let config = read_log(&mut reader);
    reader.finish(config)
}

pub(super) fn read_log(reader: &mut Reader<'_>) -> LogConfig {
    let filter = reader.text("RUST_LOG").unwrap_or_else(|| "info".to_owned());
    if let Err(error) = isthmus_rt::log::parse(&filter) {
        reader.fail(format!("RUST_LOG: {error}"));
    }
    let format = match reader.text("LOG_FORMAT").as_deref() {
        None | Some("plain") => Format::Text,
        Some("json") => Format::Json,
        Some(other) => {
            reader.fail(format!("LOG_FORMAT={other:?} is not supported: it is plain (the default) or json"));
            Format::Text
        }
    };
    LogConfig { format, filter }
}
