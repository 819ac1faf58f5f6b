//! Access log lines, parsed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use isthmus_kit::wait;

use super::playground::{Pod, succeeded};
use super::setup::{ECHO, Mesh, TestRoute};

/// All keys of ztunnel, in its order. Ours may follow.
const KEYS: [&str; 17] = [
    "src.addr",
    "src.workload",
    "src.namespace",
    "src.identity",
    "src.cluster",
    "dst.addr",
    "dst.hbone_addr",
    "dst.service",
    "dst.workload",
    "dst.namespace",
    "dst.identity",
    "dst.cluster",
    "direction",
    "bytes_sent",
    "bytes_recv",
    "duration",
    "error",
];
/// The keys that only ours has.
const MORE: [&str; 5] = ["closed_by", "policy", "tries", "tried", "gave_up"];
/// Longest wait for a line.
const PATIENCE: Duration = Duration::from_secs(15);

/// A `connection complete` or `connection failed`.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) level: String,
    pub(crate) message: String,
    pub(crate) fields: Vec<(String, String)>,
}

impl Line {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('\t');
        let (_, level, scope, message) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        // A span may follow the scope.
        let is_access = scope == "access" || scope.starts_with("access:");
        let fields = parts.next().filter(|_| is_access)?;
        Some(Self { level: level.to_owned(), message: message.to_owned(), fields: fields_of(fields) })
    }

    /// A field's value; nothing when it is missing.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.fields.iter().find(|(known, _)| known == key).map_or("", |(_, value)| value)
    }

    /// Whether all of these have these values.
    fn has(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(key, value)| self.get(key) == *value)
    }

    /// The keys are known and in order.
    fn check(&self) -> Result<()> {
        let known = KEYS.iter().chain(&MORE);
        let mut at = known.map(|key| self.fields.iter().position(|(own, _)| own == key)).collect::<Vec<_>>();
        at.retain(Option::is_some);
        ensure!(at.is_sorted() && at.len() == self.fields.len(), "keys of {self:?}");
        Ok(())
    }

    /// The fields that both programs must write equally: all but our additions and those that differ between connections.
    pub(crate) fn comparable(&self) -> BTreeMap<&str, &str> {
        let varies = ["src.addr", "duration"];
        let fields = self.fields.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        fields.filter(|(key, _)| KEYS.contains(key) && !varies.contains(key)).collect()
    }
}

/// `key=value` or `key="value"`, separated by blanks.
fn fields_of(text: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    let mut rest = text.trim();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        all.push((key.to_owned(), value.to_owned()));
        rest = next.trim_start();
    }
    all
}

impl Mesh {
    /// The whole log of an agent.
    pub(crate) fn log(&self, agent: &Pod) -> Result<String> {
        let mut command = self.playground.command("logs")?;
        let output = command.arg(format!("{}/{}", agent.cluster, agent.name)).output()?;
        succeeded("playground logs", &output)
    }

    /// The last access log line of an agent with these fields, as soon as there is one.
    pub(crate) async fn line(&self, agent: &Pod, wanted: &[(&str, &str)]) -> Result<Line> {
        let last = async || {
            let log = self.log(agent).ok()?;
            log.lines().filter_map(Line::parse).rfind(|line| line.has(wanted))
        };
        let Some(line) = wait::within(PATIENCE, last).await else {
            bail!("no line with {wanted:?} of {} in\n{}", agent.name, self.log(agent)?);
        };
        line.check()?;
        Ok(line)
    }

    /// The lines of both agents about a successful connection with this many bytes in each direction.
    pub(crate) async fn lines(&self, way: TestRoute, bytes: usize) -> Result<(Line, Line)> {
        let (near, far) = (self.near(way.from)?, self.far(way.to)?);
        let (host, size) = (way.host(), bytes.to_string());
        let [client, server] =
            ["sleep", "helloworld"].map(|sa| format!("spiffe://cluster.local/ns/sample/sa/{sa}"));
        let asker = self.playground.pod(&format!("{}/asker-{}", way.from, way.from))?.name;
        let echo = self.playground.pod(&format!("{}/echo-{}", way.to, way.to))?;
        let to = echo.ip;
        let (inside, pod) = (format!("{to}:15008"), format!("{to}:{ECHO}"));
        let door = format!("192.168.97.{}:15008", if way.to == "east" { 248 } else { 249 });
        let name = format!("{host}:{ECHO}");
        let (outer, authority) = if way.is_double() { (&door, &name) } else { (&inside, &pod) };
        let common = [
            ("src.namespace", "sample"),
            ("src.identity", &client),
            ("src.cluster", way.from),
            ("dst.hbone_addr", authority),
            ("dst.service", &host),
            ("dst.namespace", "sample"),
            ("dst.identity", &server),
            ("dst.cluster", way.to),
            ("bytes_sent", &size),
            ("bytes_recv", &size),
        ];
        let outbound = [("direction", "outbound"), ("src.workload", &asker), ("dst.addr", outer)];
        let inbound = [("direction", "inbound"), ("dst.workload", &echo.name), ("dst.addr", &inside)];
        let outbound = self.line(&near, &[&common[..], &outbound].concat()).await;
        let inbound = self.line(&far, &[&common[..], &inbound].concat()).await;
        let (outbound, inbound) = (outbound.context("client's side")?, inbound.context("server's side")?);
        for line in [&outbound, &inbound] {
            ensure!(line.level == "info" && line.message == "connection complete", "{line:?}");
            ensure!(line.get("error").is_empty(), "{line:?}");
        }
        Ok((outbound, inbound))
    }
}
