//! The beginning of an outbound connection: try after try, until a far end has accepted or there is nothing left to try.
//! What to try is decided elsewhere ([`isthmus_state::resolve_with`], [`crate::retry`]); here it is done, counted and
//! logged.

use crate::retry::FailedAttempt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::{Hostname, Workload};
use isthmus_state::resolve_with;
use isthmus_state::route::{DenyReason, Pick, Resolved, Route};
use tokio::time::Instant;

use super::attempt::{AttemptError, UpstreamConn};
use super::flow::{Flow, OutboundAttempt};
use crate::context::PodContext;
use crate::dial::client_reset;
use crate::error::Error;
use crate::host_resolver;
use crate::retry::{Cause, GiveUpReason, Learnt, Protection, RetryState};
use crate::telemetry::Record;
use crate::tracker::Tracked;

/// Names that are looked up for one connection at most.
const MOST_NAMES: usize = 4;

/// A connection that a far end has accepted.
pub(super) struct Open {
    pub(super) record: Record,
    pub(super) tracked: Tracked,
    pub(super) far: UpstreamConn,
}

/// A connection that was not made.
pub(super) enum Failed {
    /// Nobody was tried.
    Early(Error),
    /// The last one that was tried.
    Late(Record, Error),
}

/// Connects a client to where the mesh's state says.
pub(super) async fn connect(ctx: &PodContext, flow: &Flow) -> Result<Open, Failed> {
    let workload = admit(ctx, flow.original).await.map_err(Failed::Early)?;
    let begun = RetryState::begin(ctx.proxy().config.retry, &mut ctx.retry_state().lock(), Instant::now());
    let mut run = Run { ctx, flow, workload, tries: begun, names: Vec::new(), last: None };
    loop {
        if let Some(ended) = run.once().await {
            return ended;
        }
    }
}

/// Steps 1 and 2 of the reference's decision tree: no loop, and a client that is known.
async fn admit(ctx: &PodContext, original: SocketAddr) -> Result<Arc<Workload>, Error> {
    let illegal = ctx.proxy().config.is_illegal(original.port());
    if illegal && original.ip().is_loopback() {
        return Err(Error::Recursive(original));
    }
    let workload = ctx.workload().await?;
    if illegal && workload.addresses.contains(&original.ip()) {
        return Err(Error::Recursive(original));
    }
    Ok(workload)
}

/// One connection on its way.
struct Run<'a> {
    ctx: &'a PodContext,
    flow: &'a Flow,
    workload: Arc<Workload>,
    tries: RetryState,
    names: Vec<(Hostname, IpAddr)>,
    /// What the last try failed with.
    last: Option<(Record, Error)>,
}

impl Run<'_> {
    /// One try; `None` when there shall be another one.
    async fn once(&mut self) -> Option<Result<Open, Failed>> {
        let Resolved { route, reason, destination } = match self.decide().await {
            Ok(resolved) => resolved,
            Err(error) => return Some(Err(self.nobody(error, GiveUpReason::NobodyElse))),
        };
        let Some(manner) = Protection::of(&route, reason) else {
            let Route::Deny(why) = route else {
                return Some(Err(self.nobody(Error::ClientReset, GiveUpReason::NobodyElse)));
            };
            return Some(Err(self.nobody(Error::Unroutable(why), GiveUpReason::NobodyElse)));
        };
        if let Err(why) = self.tries.next(manner) {
            return Some(Err(self.nobody(Error::ClientReset, why)));
        }
        if let Some((record, _)) = self.last.take() {
            record.discard();
        }
        let way = OutboundAttempt { ctx: self.ctx, workload: Arc::clone(&self.workload), destination };
        let mut record = way.begin(self.flow, &route).with_start(self.tries.started());
        let tracked = way.track(self.flow, &route);
        let tried = tokio::select! {
            biased;
            tried = Box::pin(way.attempt(self.flow, &route)) => tried,
            () = client_reset::wait(&self.flow.stream) => Err(AttemptError::outer(Error::ClientReset)),
        };
        match tried {
            Ok((far, learnt)) => {
                if let Some((peer, said)) = learnt {
                    // Before it is counted as opened: only now is it known who serves.
                    record.update_destination(peer, said);
                }
                self.reached(picks(&route), &mut record);
                Some(Ok(Open { record, tracked, far }))
            }
            Err(missed) => self.missed(missed, &route, record).map(Err),
        }
    }

    /// Where to go, by the mesh of now and by what was learnt of it. Names that are in the way are looked up.
    async fn decide(&mut self) -> Result<Resolved, Error> {
        // With the same luck the same name is met again, and its address is known then.
        let seed = fastrand::u64(..);
        loop {
            let resolved = self.resolve(seed);
            let Route::Deny(DenyReason::HostnameOnly { workload, hostname }) = &resolved.route else {
                log_route(self.ctx, self.flow.original, &resolved);
                return Ok(resolved);
            };
            if self.names.len() == MOST_NAMES {
                return Ok(resolved);
            }
            self.ctx.proxy().metrics.retries.on_demand_dns(&self.workload, hostname);
            let found = self.ctx.proxy().host_resolver.lookup(hostname).await;
            let address = found.map_err(|cause| Error::Lookup {
                workload: workload.clone(),
                hostname: hostname.clone(),
                cause,
            })?;
            let like = self.flow.original.ip();
            let Some(address) = host_resolver::pick_address(&address, like, &mut fastrand::Rng::new()) else {
                return Ok(resolved);
            };
            self.names.push((hostname.clone(), address));
        }
    }

    fn resolve(&self, seed: u64) -> Resolved {
        let (ctx, flow) = (self.ctx, self.flow);
        let snapshot = ctx.snapshot();
        let experience = ctx.retry_state().lock();
        let mut learnt =
            Learnt { names: &self.names, ..Learnt::of(&experience, &self.tries, &self.workload.network) };
        let ask = |learnt: &Learnt<'_>| {
            let network = &ctx.proxy().network;
            let mut rng = fastrand::Rng::with_seed(seed);
            resolve_with(&snapshot, &self.workload, flow.original, network, learnt, &mut rng)
        };
        let resolved = ask(&learnt);
        let nobody = matches!(resolved.route, Route::Deny(DenyReason::AllAvoided(_)));
        if nobody && !self.tries.tried_stand_ins.is_empty() {
            learnt.stand_ins_again = true;
            return ask(&learnt);
        }
        resolved
    }

    fn reached(&self, picks: &[Pick], record: &mut Record) {
        let mut experience = self.ctx.retry_state().lock();
        self.tries.reached(picks, &mut experience, Instant::now());
        record.set_connect_summary(&self.tries, None);
    }

    /// A try failed; `None` when there shall be another one.
    fn missed(&mut self, missed: AttemptError, route: &Route, mut record: Record) -> Option<Failed> {
        let AttemptError { error, depth } = missed;
        let cause = Cause::of(&error);
        let told = FailedAttempt { cause, depth, to: record.dst(), picks: picks(route) };
        let (again, ejected) = self.tries.missed(&told, &mut self.ctx.retry_state().lock(), Instant::now());
        if !told.picks.is_empty() {
            self.ctx.proxy().metrics.retries.record_failure(cause, again, ejected);
        }
        match again {
            Ok(()) => {
                let dst = self.flow.original;
                tracing::debug!(pod = %self.ctx.name(), %dst, %error, "another endpoint is tried");
                self.last = Some((record, error));
                None
            }
            Err(why) => {
                if !told.picks.is_empty() {
                    record.set_connect_summary(&self.tries, Some(why));
                }
                Some(Failed::Late(record, error))
            }
        }
    }

    /// There is nobody to try: the connection ends with what the last try failed with, if there was one.
    fn nobody(&mut self, error: Error, why: GiveUpReason) -> Failed {
        let Some((mut record, error)) = self.last.take() else { return Failed::Early(error) };
        record.set_connect_summary(&self.tries, Some(why));
        self.ctx.proxy().metrics.retries.record_give_up(why);
        Failed::Late(record, error)
    }
}

fn picks(route: &Route) -> &[Pick] {
    match route {
        Route::Tcp(upstream) | Route::Hbone(upstream) | Route::DoubleHbone(upstream) => &upstream.picks,
        Route::Passthrough { .. } | Route::Deny(_) => &[],
    }
}

fn log_route(ctx: &PodContext, original: SocketAddr, resolved: &Resolved) {
    let (route, upstream) = match &resolved.route {
        Route::Passthrough { to } => ("passthrough", Some(*to)),
        Route::Tcp(upstream) => ("tcp", Some(upstream.tcp_to)),
        Route::Hbone(upstream) => ("hbone", Some(upstream.tcp_to)),
        Route::DoubleHbone(upstream) => ("double hbone", Some(upstream.tcp_to)),
        Route::Deny(_) => ("deny", None),
    };
    tracing::debug!(
        pod = %ctx.name(),
        dst = %original,
        route,
        upstream = upstream.map(tracing::field::display),
        workload = resolved.destination.workload.as_ref().map(|workload| workload.uid.as_str()),
        reason = resolved.reason.as_str(),
        "resolved"
    );
}
