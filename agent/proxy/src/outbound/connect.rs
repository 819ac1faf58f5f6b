//! How an outbound connection gets its upstream: admission, resolution of the original destination, lookup of a workload's
//! hostname. The attempts themselves are driven by [`super::retry_loop`].

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_model::Workload;
use isthmus_state::route::{Decision, DenyReason, Pending, Picks, Resolved, Route};
use isthmus_state::{Avoid, Ejected, choose_address, resolve_avoiding};
use tokio::time::Instant;

use super::attempt::UpstreamConn;
use super::flow::{Flow, OutboundAttempt};
use super::retry_loop::{self, AttemptError, Connected, Failed, NoChoice, PeerClaims, Upstreams};
use crate::context::PodContext;
use crate::dial::client_reset;
use crate::error::Error;
use crate::host_resolver::HostLookupError;
use crate::retry::{GiveUpReason, Protection, RetryState};
use crate::telemetry::Record;
use crate::tracker::Tracked;

/// Connects a client to an upstream of its original destination.
pub(super) async fn connect(ctx: &PodContext, flow: &Flow) -> Result<Connected<UpstreamConn>, Failed<Error>> {
    let workload = admit(ctx, flow.original).await.map_err(Failed::BeforeAttempt)?;
    retry_loop::connect(ctx, OutboundUpstreams { ctx, flow, workload }).await
}

/// Steps 1 and 2 of the reference's decision tree: no loop, and a client workload that is known.
async fn admit(ctx: &PodContext, original: SocketAddr) -> Result<Arc<Workload>, Error> {
    let illegal = ctx.proxy().config.is_illegal(original.port());
    if illegal && original.ip().is_loopback() {
        return Err(Error::Recursive(original));
    }
    let workload = ctx.workload().await?;
    if illegal && (workload.addresses.contains(&original.ip()) || ctx.has_unlisted_address(original.ip())) {
        return Err(Error::Recursive(original));
    }
    Ok(workload)
}

/// The upstreams of a connection's original destination.
struct OutboundUpstreams<'a> {
    ctx: &'a PodContext,
    flow: &'a Flow,
    /// The client.
    workload: Arc<Workload>,
}

impl<'a> Upstreams for OutboundUpstreams<'a> {
    type Choice = OutboundAttempt<'a>;
    type Conn = UpstreamConn;
    type Refusal = Error;

    /// By the mesh as it is now: a retry may find a newer snapshot than the attempt before it.
    async fn choose(&mut self, retry: &RetryState) -> Result<OutboundAttempt<'a>, NoChoice<Error>> {
        let none = |refusal| NoChoice { refusal, reason: GiveUpReason::NoOtherEndpoint };
        let Resolved { decision, reason, destination } = self.resolve(retry);
        let route = match decision {
            Decision::Connect(route) => Ok(route),
            Decision::NeedsAddress(pending) => Ok(self.look_up(*pending, retry).await.map_err(none)?),
            Decision::Deny(denied) => Err(Error::Unroutable(denied)),
        };
        let (ctx, flow) = (self.ctx, self.flow);
        tracing::debug!(
            pod = %ctx.name(),
            dst = %flow.original,
            route = route.as_ref().map_or("deny", Route::kind),
            upstream = route.as_ref().ok().map(|route| tracing::field::display(route.addr())),
            workload = destination.workload.as_ref().map(|workload| workload.uid.as_str()),
            reason = reason.as_str(),
            "resolved"
        );
        let route = route.map_err(none)?;
        let protection = Protection::of(&route, reason);
        if !retry.allows(protection) {
            return Err(NoChoice { refusal: Error::ClientReset, reason: GiveUpReason::WeakerProtection });
        }
        let workload = Arc::clone(&self.workload);
        Ok(OutboundAttempt { ctx, flow, workload, route, protection, destination })
    }

    fn picks<'c>(choice: &'c OutboundAttempt<'a>) -> Picks<'c> {
        choice.route.picks()
    }

    fn protection(choice: &OutboundAttempt<'a>) -> Protection {
        choice.protection
    }

    fn start(&self, choice: &OutboundAttempt<'a>) -> (Record, Tracked) {
        (choice.record(), choice.track())
    }

    async fn attempt(
        &mut self,
        choice: &OutboundAttempt<'a>,
    ) -> Result<(UpstreamConn, Option<PeerClaims>), AttemptError> {
        tokio::select! {
            biased;
            connected = choice.connect() => connected,
            () = client_reset::wait(&self.flow.stream) => Err(AttemptError::outer(Error::ClientReset)),
        }
    }
}

impl OutboundUpstreams<'_> {
    fn resolve(&self, retry: &RetryState) -> Resolved {
        let (ctx, original) = (self.ctx, self.flow.original);
        // A copy, so that the pod's lock is not held while tables are built.
        let ejected = ctx.retry_state().ejected();
        let ejected = ejected.as_deref().map(|endpoints| Ejected { endpoints, now: Instant::now() });
        let (snapshot, network) = (ctx.snapshot(), &ctx.proxy().network);
        let seed = fastrand::u64(..);
        let resolve = |avoid| {
            let mut rng = fastrand::Rng::with_seed(seed);
            resolve_avoiding(&snapshot, &self.workload, original, network, avoid, &mut rng)
        };
        let avoid = retry.avoid(ejected);
        let resolved = resolve(avoid);
        let all_avoided = matches!(resolved.decision, Decision::Deny(DenyReason::AllAvoided(_)));
        if all_avoided && !avoid.tried_remote.is_empty() {
            return resolve(Avoid { tried_remote: &[], ..avoid });
        }
        resolved
    }

    /// Finishes a choice whose workload is known by its hostname only, with an address that was not tried yet.
    async fn look_up(&self, pending: Pending, retry: &RetryState) -> Result<Route, Error> {
        let (proxy, hostname) = (self.ctx.proxy(), pending.hostname());
        proxy.metrics.retries.on_demand_dns(&self.workload, hostname);
        let error = |cause| Error::Lookup {
            workload: pending.workload().uid.clone(),
            hostname: hostname.clone(),
            cause,
        };
        let addresses = proxy.host_resolver.lookup(hostname).await.map_err(error)?;
        let ejected = self.ctx.retry_state().ejected();
        let ejected = ejected.as_deref().map(|endpoints| Ejected { endpoints, now: Instant::now() });
        let (like, rng) = (self.flow.original.ip(), &mut fastrand::Rng::new());
        let address = choose_address(&pending, &addresses, like, &retry.avoid(ejected), rng)
            .ok_or_else(|| error(HostLookupError::NoAddress))?;
        Ok(pending.resolve(address))
    }
}
