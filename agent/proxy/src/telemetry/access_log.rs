//! The access log: one line per connection under the scope `access`, with the keys of the field in their order. What is
//! not known is left out. Knows no connection, only its line.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_model::Authority;

use crate::types::Direction;

/// What every line about an opened connection says.
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

/// What the last line says besides.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    /// Bytes the local workload sent.
    pub(crate) bytes_sent: u64,
    /// Bytes the local workload received.
    pub(crate) bytes_recv: u64,
    pub(crate) duration: Duration,
    pub(crate) error: Option<String>,
    /// Which side ended it first.
    pub(crate) closed_by: Option<&'a str>,
    /// The policy that refused it.
    pub(crate) policy: Option<String>,
    /// How many ends were tried, when it is worth a word.
    pub(crate) tries: Option<u32>,
    /// Which of them refused, how, and who was put out for it.
    pub(crate) tried: Option<&'a str>,
    /// Why nobody else was tried.
    pub(crate) gave_up: Option<&'a str>,
}

/// One event with the keys of a line, then `$more`.
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

/// One `connection complete` event at a level.
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
            gave_up = $ending.gave_up
        )
    };
}

/// Whether openings are logged: making their lines costs a few allocations.
pub(crate) fn says_opened() -> bool {
    tracing::enabled!(target: "access", tracing::Level::DEBUG)
}

/// The connection was opened (debug).
pub(crate) fn opened(line: &Line<'_>) {
    event!(tracing::Level::DEBUG, "connection opened", line);
}

/// The connection ended: info when well, error when not.
pub(crate) fn closed(line: &Line<'_>, ending: &Ending<'_>) {
    if ending.error.is_some() {
        complete!(tracing::Level::ERROR, line, ending);
    } else {
        complete!(tracing::Level::INFO, line, ending);
    }
}

/// The connection was refused before there was anything to count.
pub(crate) fn early(src: SocketAddr, dst: SocketAddr, direction: Direction, error: &dyn std::fmt::Display) {
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

#[cfg(test)]
mod tests;
