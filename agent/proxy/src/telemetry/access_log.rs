//! The access log: events with the target `access`, with ztunnel's messages, keys and their order. Keys without a
//! value are left out. Knows only the values of a line, not the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::Authority;
use tokio::time::Instant;

use super::line_limits::{LeftOut, WINDOW};
use super::metrics::Metrics;
use crate::types::Direction;

/// Keys of every event of a connection.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) src: SocketAddr,
    pub(crate) src_workload: Option<&'a str>,
    pub(crate) src_namespace: Option<&'a str>,
    pub(crate) src_identity: Option<String>,
    pub(crate) src_cluster: Option<&'a str>,
    pub(crate) dst: SocketAddr,
    pub(crate) dst_hbone: Option<&'a Authority>,
    pub(crate) dst_service: Option<&'a str>,
    pub(crate) dst_workload: Option<&'a str>,
    pub(crate) dst_namespace: Option<&'a str>,
    pub(crate) dst_identity: Option<String>,
    pub(crate) dst_cluster: Option<&'a str>,
    pub(crate) direction: Direction,
}

/// Additional keys of the event of a closed connection.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    /// Bytes that the local workload sent.
    pub(crate) bytes_sent: u64,
    /// Bytes that the local workload received.
    pub(crate) bytes_recv: u64,
    pub(crate) duration: Duration,
    pub(crate) error: Option<String>,
    /// The side that closed first: `client`, `server`, or `revocation`.
    pub(crate) closed_by: Option<&'a str>,
    /// The policy that denied the connection.
    pub(crate) policy: Option<String>,
    /// Number of attempts to connect, if more than one or if retries were given up.
    pub(crate) tries: Option<u32>,
    /// Upstreams of the failed attempts, with their causes and ejections.
    pub(crate) tried: Option<&'a str>,
    /// Why no further attempt was made.
    pub(crate) gave_up: Option<&'a str>,
    /// How often the connection was handed over between two agents, if it was.
    pub(crate) handovers: Option<u32>,
}

/// An event with the keys of a line, then `$more`.
macro_rules! event {
    ($level:expr, $message:literal, $line:expr $(, $($more:tt)+)?) => {
        tracing::event!(
            target: "access",
            $level,
            src.addr = %$line.src,
            src.workload = $line.src_workload,
            src.namespace = $line.src_namespace,
            src.identity = $line.src_identity.as_deref(),
            src.cluster = $line.src_cluster,
            dst.addr = %$line.dst,
            dst.hbone_addr = $line.dst_hbone.map(tracing::field::display),
            dst.service = $line.dst_service,
            dst.workload = $line.dst_workload,
            dst.namespace = $line.dst_namespace,
            dst.identity = $line.dst_identity.as_deref(),
            dst.cluster = $line.dst_cluster,
            direction = $line.direction.as_str(),
            $($($more)+,)?
            $message
        )
    };
}

/// A `connection complete` event at a level.
macro_rules! complete {
    ($level:expr, $line:expr, $ending:expr) => {
        event!(
            $level,
            "connection complete",
            $line,
            bytes_sent = $ending.bytes_sent,
            bytes_recv = $ending.bytes_recv,
            duration = format!("{}ms", $ending.duration.as_millis()).as_str(),
            error = $ending.error.as_deref(),
            closed_by = $ending.closed_by,
            policy = $ending.policy.as_deref(),
            tries = $ending.tries,
            tried = $ending.tried,
            gave_up = $ending.gave_up,
            handovers = $ending.handovers
        )
    };
}

/// Whether opened connections are logged; allows to skip the allocations of their lines.
pub(crate) fn logs_opened() -> bool {
    tracing::enabled!(target: "access", tracing::Level::DEBUG)
}

/// Whether closed connections are logged; allows to skip the allocations of their lines.
pub(crate) fn logs_closed(with_error: bool) -> bool {
    if with_error {
        tracing::enabled!(target: "access", tracing::Level::ERROR)
    } else {
        tracing::enabled!(target: "access", tracing::Level::INFO)
    }
}

/// Logs an opened connection, at debug.
pub(crate) fn opened(line: &Line<'_>) {
    event!(tracing::Level::DEBUG, "connection opened", line);
}

/// Logs a closed connection, at error if it has one, else at info.
pub(crate) fn closed(line: &Line<'_>, ending: &Ending<'_>) {
    if ending.error.is_some() {
        complete!(tracing::Level::ERROR, line, ending);
    } else {
        complete!(tracing::Level::INFO, line, ending);
    }
}

/// Logs a connection that was refused before it had a record, unless its source fails too often.
pub(crate) fn failed(
    metrics: &Metrics,
    (src, dst): (SocketAddr, SocketAddr),
    direction: Direction,
    error: &dyn std::fmt::Display,
) {
    if !metrics.admits_line((src, dst, direction), "", || error.to_string()) {
        return;
    }
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        src.addr = %src,
        dst.addr = %dst,
        direction = direction.as_str(),
        error = error.to_string().as_str(),
        "connection failed"
    );
}

/// Logs periodically which failed connections had no line of their own. Never returns.
pub async fn report_left_out(metrics: Arc<Metrics>) {
    loop {
        tokio::time::sleep(WINDOW).await;
        metrics.left_out(Instant::now()).iter().for_each(left_out);
    }
}

/// Logs how many failed connections of one source had no line of their own.
fn left_out(left_out: &LeftOut) {
    let LeftOut { key, count, last } = left_out;
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        src.ip = %key.source,
        pod.ip = %key.local,
        direction = key.direction.as_str(),
        response_flags = key.flag,
        count,
        last_error = last.as_str(),
        "connections failed too often to be logged one by one"
    );
}

#[cfg(test)]
mod tests;
