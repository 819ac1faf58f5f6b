//! Reads typed settings from the environment, and is the only module that does. Errors are collected, so that an operator
//! sees every bad value at once.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// Source of settings: the process' environment, or a map in tests.
pub trait Strings {
    /// The value of a variable, `None` when unset.
    fn get(&self, key: &str) -> Option<String>;
    /// All variables.
    fn all(&self) -> Vec<(String, String)>;
}

/// The process' environment. A value that is not UTF-8 is read as unset.
#[derive(Debug, Clone, Copy)]
pub struct Environment;

impl Strings for Environment {
    fn get(&self, key: &str) -> Option<String> {
        std::env::var(key).ok()
    }

    fn all(&self) -> Vec<(String, String)> {
        std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect()
    }
}

impl Strings for BTreeMap<String, String> {
    fn get(&self, key: &str) -> Option<String> {
        Self::get(self, key).cloned()
    }

    fn all(&self) -> Vec<(String, String)> {
        self.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

/// A boolean as Go's `strconv.ParseBool` reads it.
pub(super) fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Every bad setting, one line each: variable, value, and what is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Reads typed values and collects errors.
pub struct Reader<'a> {
    strings: &'a dyn Strings,
    errors: Vec<String>,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("errors", &self.errors).finish_non_exhaustive()
    }
}

impl<'a> Reader<'a> {
    /// A reader over some strings.
    #[must_use]
    pub fn new(strings: &'a dyn Strings) -> Self {
        Self { strings, errors: Vec::new() }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// The collected errors, in the order in which they were found.
    pub fn finish<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.errors.is_empty() { Ok(value) } else { Err(ConfigErrors(self.errors)) }
    }

    /// Adds an error. A setting that two parts of a role read is reported once.
    pub fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        if !self.errors.contains(&what) {
            self.errors.push(what);
        }
    }

    /// The value as it is; `None` when unset.
    #[must_use]
    pub fn raw(&self, key: &str) -> Option<String> {
        self.strings.get(key)
    }

    /// The value; `None` when unset or empty.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<String> {
        self.strings.get(key).filter(|text| !text.is_empty())
    }

    /// A value that must be set; `what` says what it is needed for.
    pub fn required(&mut self, key: &str, what: &str) -> String {
        self.text(key).unwrap_or_else(|| {
            self.fail(format!("{key} is not set: {what}"));
            String::new()
        })
    }

    /// A parsed value, or the default when unset or empty. `wanted` says what is accepted.
    pub fn parsed<T: FromStr>(&mut self, key: &str, default: T, wanted: &str) -> T {
        self.parsed_opt(key, wanted).unwrap_or(default)
    }

    /// A parsed value; `None` when unset or empty.
    pub fn parsed_opt<T: FromStr>(&mut self, key: &str, wanted: &str) -> Option<T> {
        let text = self.text(key)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.fail(format!("{key}={text:?} is not {wanted}"));
        }
        value
    }

    /// A number within bounds; `None` when unset or empty.
    pub fn within(&mut self, key: &str, bounds: RangeInclusive<u32>) -> Option<u32> {
        let wanted = format!("a number from {} to {}", bounds.start(), bounds.end());
        let value = self.parsed_opt(key, &wanted)?;
        let fits = bounds.contains(&value);
        if !fits {
            self.fail(format!("{key}={value} is not {wanted}"));
        }
        fits.then_some(value)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &str, default: bool) -> bool {
        self.parsed(key, default, "true or false")
    }

    /// A boolean in any of Go's spellings, which istio-cni's settings are read with.
    pub fn go_flag(&mut self, key: &str, default: bool) -> bool {
        let Some(text) = self.text(key) else { return default };
        go_bool(&text).unwrap_or_else(|| {
            self.fail(format!("{key}={text:?} is not a boolean: write true or false"));
            default
        })
    }

    /// Whether the value is exactly `true`; anything else is false and no error, as ztunnel reads some of its variables.
    #[must_use]
    pub fn is_true(&self, key: &str) -> bool {
        self.text(key).as_deref() == Some("true")
    }

    /// A duration such as `5m`, `180s` or `24h`.
    pub fn duration(&mut self, key: &str, default: Duration) -> Duration {
        let Some(text) = self.text(key) else { return default };
        humantime::parse_duration(&text).unwrap_or_else(|_| {
            self.fail(format!("{key}={text:?} is not a duration such as 5m, 180s or 24h"));
            default
        })
    }

    /// The variables with this prefix; keys are without it.
    #[must_use]
    pub fn prefixed(&self, prefix: &str) -> BTreeMap<String, String> {
        let strip = |(key, value): (String, String)| Some((key.strip_prefix(prefix)?.to_owned(), value));
        self.strings.all().into_iter().filter_map(strip).collect()
    }
}
