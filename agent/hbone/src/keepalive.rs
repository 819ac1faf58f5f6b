//! Keepalive: whether the peer of a tunnel is still there. Every received byte counts; a PING is sent only after silence.
//! It has a timer, and knows neither transport nor frames.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::error::TunnelError;
use crate::settings::Settings;

/// The keepalive of one tunnel.
#[derive(Debug)]
pub(crate) struct Keepalive {
    interval: Duration,
    timeout: Duration,
    /// When a byte was last received.
    last: Instant,
    pinged: Option<Instant>,
    /// Fires at, or before, the time at which there is something to do: received bytes do not reset it.
    timer: Pin<Box<Sleep>>,
}

impl Keepalive {
    pub(crate) fn new(settings: &Settings) -> Self {
        let (interval, now) = (settings.ping_interval, Instant::now());
        Self {
            interval,
            timeout: settings.ping_timeout,
            last: now,
            pinged: None,
            timer: Box::pin(tokio::time::sleep_until(now + interval)),
        }
    }

    /// Goes on after a silence of `silence`, in which a PING was sent `pinged` ago.
    pub(crate) fn resumed(settings: &Settings, silence: Duration, pinged: Option<Duration>) -> Self {
        let now = Instant::now();
        let ago = |since: Duration| now.checked_sub(since).unwrap_or(now);
        // At once: what there is to do is decided then.
        let timer = Box::pin(tokio::time::sleep_until(now));
        Self { last: ago(silence), pinged: pinged.map(ago), timer, ..Self::new(settings) }
    }

    /// The silence so far, and when the last PING was sent.
    pub(crate) fn into_parts(self) -> (Duration, Option<Duration>) {
        let Self { interval: _, timeout: _, last, pinged, timer: _ } = self;
        (last.elapsed(), pinged.map(|at| at.elapsed()))
    }

    /// Something was received.
    pub(crate) fn record_activity(&mut self) {
        self.last = Instant::now();
    }

    /// Whether a PING is to be sent now.
    ///
    /// # Errors
    /// When the peer did not break its silence in time.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Result<bool, TunnelError> {
        let mut ping = false;
        while let Poll::Ready(()) = self.timer.as_mut().poll(cx) {
            let now = Instant::now();
            let next = match self.pinged.filter(|at| self.last < *at) {
                Some(at) if now >= at + self.timeout => {
                    return Err(TunnelError::KeepaliveTimeout(self.timeout));
                }
                Some(at) => (at + self.timeout).min(now + self.interval),
                None if now < self.last + self.interval => self.last + self.interval,
                None => {
                    ping = true;
                    self.pinged = Some(now);
                    now + self.timeout.min(self.interval)
                }
            };
            self.timer.as_mut().reset(next);
        }
        Ok(ping)
    }
}
