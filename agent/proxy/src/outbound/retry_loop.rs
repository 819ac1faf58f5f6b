//! The loop around connection attempts: choose an upstream, connect to it, and try another one for as long as the retry
//! state machine ([`crate::retry`]) says so. It counts and logs the attempts, and knows neither how an upstream is chosen
//! nor what connecting to one takes: outbound connections and the gateway bring that along as [`Upstreams`].

use isthmus_model::SpiffeId;
use isthmus_state::route::Picks;
use tokio::time::Instant;

use crate::context::PodContext;
use crate::error::Error;
use crate::retry::{Cause, FailedAttempt, GiveUpReason, Hop, Protection, RetryState};
use crate::telemetry::{EndpointInfo, Record};
use crate::tracker::Tracked;

/// The upstreams of one connection: how one is chosen, and how to connect to it.
pub(crate) trait Upstreams {
    /// One that was chosen.
    type Choice;
    /// A connection to it.
    type Conn;
    /// Why none was chosen.
    type Refusal;

    /// Chooses an upstream. It must avoid what `retry` says.
    async fn choose(&mut self, retry: &RetryState) -> Result<Self::Choice, NoChoice<Self::Refusal>>;

    /// The workloads behind a choice, of which one is at fault when the attempt fails.
    fn picks(choice: &Self::Choice) -> Picks<'_>;

    /// How well a connection to it is protected.
    fn protection(choice: &Self::Choice) -> Protection;

    /// Starts the record of the connection and enters it into the pod's table.
    fn start(&self, choice: &Self::Choice) -> (Record, Tracked);

    /// Connects, or fails early when the client is gone. Sends nothing of the application's.
    async fn attempt(
        &mut self,
        choice: &Self::Choice,
    ) -> Result<(Self::Conn, Option<PeerClaims>), AttemptError>;
}

/// No upstream can be chosen.
pub(crate) struct NoChoice<R> {
    /// What the client gets to know when nothing was tried yet.
    pub(crate) refusal: R,
    /// Why no retry is made, after a failed attempt.
    pub(crate) reason: GiveUpReason,
}

/// The peer of an inner tunnel, by its own account: the gateway chose it, so nothing else is known of it.
#[derive(Debug)]
pub(crate) struct PeerClaims {
    /// The identity that it proved.
    pub(crate) proven: Option<SpiffeId>,
    /// The workload that it says it is, in its baggage.
    pub(crate) claimed: Option<EndpointInfo>,
}

/// An attempt that failed.
#[derive(Debug)]
pub(crate) struct AttemptError {
    pub(crate) error: Error,
    pub(crate) hop: Hop,
}

/// A connection that an upstream has accepted.
pub(crate) struct Connected<C> {
    pub(crate) record: Record,
    pub(crate) tracked: Tracked,
    pub(crate) upstream: C,
}

/// A connection that was not made.
pub(crate) enum Failed<R> {
    /// Nothing was tried.
    BeforeAttempt(R),
    /// The last attempt.
    Attempt(Record, Error),
}

impl AttemptError {
    /// At the first peer.
    pub(crate) fn outer(error: Error) -> Self {
        Self { error, hop: Hop::Outer }
    }
}

/// Tries one upstream after the other until one has accepted or no retry may be made.
pub(crate) async fn connect<U: Upstreams>(
    ctx: &PodContext,
    mut upstreams: U,
) -> Result<Connected<U::Conn>, Failed<U::Refusal>> {
    let config = ctx.proxy().config.retry;
    let mut retry = RetryState::start(config, &mut ctx.retry_state().lock(), Instant::now());
    let mut last: Option<(Record, Error)> = None;
    loop {
        let choice = match (upstreams.choose(&retry).await, last.take()) {
            (Ok(choice), last) => {
                // The next attempt's record takes its place.
                if let Some((record, _)) = last {
                    record.discard();
                }
                choice
            }
            (Err(none), None) => return Err(Failed::BeforeAttempt(none.refusal)),
            (Err(none), Some((mut record, error))) => {
                record.set_connect_summary(&retry, Some(none.reason));
                ctx.proxy().metrics.retries.record_give_up(none.reason);
                return Err(Failed::Attempt(record, error));
            }
        };
        retry.start_attempt(U::protection(&choice));
        let (record, tracked) = upstreams.start(&choice);
        let mut record = record.with_start(retry.started());
        match Box::pin(upstreams.attempt(&choice)).await {
            Ok((upstream, claims)) => {
                if let Some(PeerClaims { proven, claimed }) = claims {
                    // Before the connection is counted as opened: only now is it known which workload serves.
                    record.update_destination(proven, claimed);
                }
                RetryState::record_success(U::picks(&choice), &mut ctx.retry_state().lock(), Instant::now());
                record.set_connect_summary(&retry, None);
                return Ok(Connected { record, tracked, upstream });
            }
            Err(failed) => {
                let error = record_failure(ctx, &mut retry, failed, U::picks(&choice), &mut record);
                match error {
                    Ok(error) => last = Some((record, error)),
                    Err(error) => return Err(Failed::Attempt(record, error)),
                }
            }
        }
    }
}

/// Counts and logs a failed attempt. The error is in `Ok` when there shall be a retry.
fn record_failure(
    ctx: &PodContext,
    retry: &mut RetryState,
    failed: AttemptError,
    picks: Picks<'_>,
    record: &mut Record,
) -> Result<Error, Error> {
    let AttemptError { error, hop } = failed;
    let cause = Cause::of(&error);
    let failed = FailedAttempt { cause, hop, to: record.dst(), picks };
    let outcome = retry.record_failure(&failed, &mut ctx.retry_state().lock(), Instant::now());
    // Without a choice there is nothing that a retry could have changed.
    if picks != Picks::None {
        ctx.proxy().metrics.retries.record_failure(cause, outcome.retry, outcome.ejected);
    }
    match outcome.retry {
        Ok(()) => {
            let to = record.dst();
            tracing::debug!(pod = %ctx.name(), dst = %to, %error, "connection attempt failed, another endpoint is tried");
            Ok(error)
        }
        Err(reason) => {
            if picks != Picks::None {
                record.set_connect_summary(retry, Some(reason));
            }
            Err(error)
        }
    }
}
