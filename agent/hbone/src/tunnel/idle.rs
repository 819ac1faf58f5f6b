//! When a server closes a tunnel without streams. It has a clock, and knows neither transport nor frames.

use std::time::Duration;

use tokio::time::Instant;

use super::parts::ago;
use crate::peer_budget::PeerTunnel;
use crate::settings::Settings;

/// How long a client may take to answer the PING of a drain, when no stream is open.
const ANSWER: Duration = Duration::from_secs(20);

/// The idle time of one tunnel.
#[derive(Debug)]
pub(super) struct Idle {
    limit: Duration,
    crowded: Duration,
    pub(super) peer: Option<PeerTunnel>,
    since: Option<Instant>,
}

/// What to do about an idle tunnel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Keep,
    /// Tell the client to open no more streams.
    Drain,
    /// It did not answer.
    End,
}

impl Idle {
    pub(super) fn new(settings: &Settings) -> Self {
        let (limit, crowded) = (settings.server_idle, settings.server_idle_crowded);
        Self { limit, crowded, peer: settings.peer.clone(), since: None }
    }

    /// Since when no stream is open. The rest are settings of the process which goes on.
    pub(super) fn into_parts(self) -> Option<Duration> {
        let Self { limit: _, crowded: _, peer: _, since } = self;
        since.map(|since| since.elapsed())
    }

    pub(super) fn resumed(settings: &Settings, since: Option<Duration>) -> Self {
        Self { since: since.map(ago), ..Self::new(settings) }
    }

    /// A stream is open.
    pub(super) fn record_stream(&mut self) {
        self.since = None;
    }

    /// No stream is open.
    pub(super) fn verdict(&mut self) -> Verdict {
        let idle = self.since.get_or_insert_with(Instant::now).elapsed();
        let is_crowded = self.peer.as_ref().is_some_and(PeerTunnel::is_crowded);
        let limit = if is_crowded { self.crowded.min(self.limit) } else { self.limit };
        match idle {
            idle if idle >= limit.saturating_add(ANSWER) => Verdict::End,
            idle if idle >= limit => Verdict::Drain,
            _ => Verdict::Keep,
        }
    }
}
