//! One JSON object per line on standard error, in a file of the run directory, and to the node role, which logs it too:
//! the last two where they are there. Logging never fails a command.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use crate::http::{Client, UnixConnector};

const FILE: &str = "istio-cni.log";
/// The node role's socket for lines.
const SOCKET: &str = "log.sock";
/// Longest time that a line to the node role may take.
const DEADLINE: Duration = Duration::from_millis(500);
/// The answer has no body.
const MAX_ANSWER: u64 = 4 << 10;
/// The file is put aside, once, when it has grown to this size.
const ROLL_AT: u64 = 10 << 20;

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// Nothing.
    None,
    /// Failed commands.
    Error,
    /// And attempts that failed and are retried.
    Warn,
    /// And enrolled pods.
    Info,
    /// And pods that stay out of the mesh, with the reason.
    Debug,
}

/// Where the lines go.
#[derive(Debug)]
pub(crate) struct Log {
    level: Level,
    file: PathBuf,
    socket: PathBuf,
}

// === impl Level ===

impl Level {
    /// Reads `plugin_log_level`: a level, or Istio's list of `scope:level`. Of several the entry for our scope counts
    /// (`cni-plugin`, `cni`), then the one for every scope (`default`, `all`, or without a scope). `None` when no entry
    /// that counts is a level. How much is logged must never decide whether a pod starts, so nothing here is an error.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let entries = text.split(',').map(|entry| match entry.rsplit_once(':') {
            Some((scope, level)) => (scope.trim(), level.trim()),
            None => ("default", entry.trim()),
        });
        let of = |scopes: &[&str]| {
            let ours =
                entries.clone().filter(|(scope, _)| scopes.iter().any(|of| of.eq_ignore_ascii_case(scope)));
            ours.filter_map(|(_, level)| Self::named(level)).next_back()
        };
        of(&["cni-plugin", "cni"]).or_else(|| of(&["default", "all"]))
    }

    fn named(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "none" | "off" => Self::None,
            "error" | "fatal" => Self::Error,
            "warn" | "warning" => Self::Warn,
            "info" => Self::Info,
            "debug" | "trace" => Self::Debug,
            _ => return None,
        })
    }
}

// === impl Log ===

impl Log {
    /// A log up to `level`, with its file and the node role's socket in `run_dir`.
    pub(crate) fn new(level: Level, run_dir: &Path) -> Self {
        Self { level, file: run_dir.join(FILE), socket: run_dir.join(SOCKET) }
    }

    /// Writes one line.
    pub(crate) fn line(&self, level: Level, message: &str, fields: &[(&str, &str)]) {
        if level > self.level {
            return;
        }
        let line =
            render(level, &humantime::format_rfc3339_micros(SystemTime::now()).to_string(), message, fields);
        let _ = std::io::stderr().write_all(line.as_bytes());
        if std::fs::metadata(&self.file).is_ok_and(|file| file.len() > ROLL_AT) {
            let _ = std::fs::rename(&self.file, self.file.with_extension("log.1"));
        }
        // The folder is created by the node role's installer; without it there is no file.
        if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(&self.file) {
            let _ = file.write_all(line.as_bytes());
        }
        // Without a node role there is no socket, or none that listens.
        let body = Value::from(vec![line.trim_end()]).to_string().into_bytes();
        let _ = Client::unix(UnixConnector(self.socket.clone()), DEADLINE, MAX_ANSWER)
            .post("http://isthmus-node/log", body);
    }
}

fn render(level: Level, time: &str, message: &str, fields: &[(&str, &str)]) -> String {
    let level = match level {
        Level::None | Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let mut object = Map::new();
    for (key, value) in [("level", level), ("time", time), ("msg", message)].iter().chain(fields) {
        object.insert((*key).to_owned(), Value::from(*value));
    }
    format!("{}\n", Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object() {
        assert_eq!(
            render(Level::Info, "T", "pod \"x\"", &[("pod", "sample/sleep")]),
            "{\"level\":\"info\",\"time\":\"T\",\"msg\":\"pod \\\"x\\\"\",\"pod\":\"sample/sleep\"}\n"
        );
    }

    #[test]
    fn levels_are_read_in_every_form_that_istio_takes() {
        for (text, want) in [
            ("info", Some(Level::Info)),
            ("WARN", Some(Level::Warn)),
            ("Warning", Some(Level::Warn)),
            (" debug ", Some(Level::Debug)),
            ("trace", Some(Level::Debug)),
            ("fatal", Some(Level::Error)),
            ("off", Some(Level::None)),
            ("default:info,cni:debug", Some(Level::Debug)),
            ("cni:debug,default:info", Some(Level::Debug)),
            ("default:warn", Some(Level::Warn)),
            ("all:error,other:debug", Some(Level::Error)),
            ("cni-plugin:none,cni-agent:debug", Some(Level::None)),
            ("cni:loud,default:warn", Some(Level::Warn)),
            ("other:debug", None),
            ("loud", None),
            (":", None),
            ("", None),
        ] {
            assert_eq!(Level::parse(text), want, "{text:?}");
        }
    }

    #[test]
    fn levels_are_ordered_and_none_is_silent() {
        assert!(Level::Error < Level::Debug && Level::None < Level::Error);
        let dir = tempfile::tempdir().unwrap();
        Log::new(Level::None, dir.path()).line(Level::Error, "x", &[]);
        assert!(!dir.path().join(FILE).exists());
        Log::new(Level::Error, dir.path()).line(Level::Error, "x", &[]);
        assert!(dir.path().join(FILE).exists());
    }
}
