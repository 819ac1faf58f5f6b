//! 15008 of the gateway: ends the outer tunnel, chooses an endpoint, and passes the inner bytes to that pod's own 15008.
//! Any member of the trust domain may ask; whether it is let in is decided by the pod, which sees its identity.

use crate::retry::FailedAttempt;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::copy;
use isthmus_hbone::server::Responder;
use isthmus_hbone::{ConnectStatus, Head};
use isthmus_identity::PeerIdentity;
use isthmus_model::{Authority, NetworkAddress};
use isthmus_rt::drain::Watch;
use isthmus_state::{GatewayTarget, gateway_target};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Globals;
use crate::accept::Accepted;
use crate::context::PodContext;
use crate::error::Error;
use crate::retry::{Cause, GiveUpReason, Hop, Learnt, RetryState};
use crate::server;
use crate::telemetry::access_log;
use crate::telemetry::baggage;
use crate::telemetry::{End, Opening, Record, ServiceLabels};
use crate::tracker::{Connection, Tracked};
use crate::types::{Carrier, Direction, Reporter};

/// Serves one outer connection to its end.
pub(super) async fn accept(
    ctx: Arc<PodContext>,
    globals: Arc<dyn Globals>,
    accepted: Accepted,
    drain: Watch,
) {
    let _open = ctx.proxy().metrics.socket(Reporter::Gateway);
    ctx.sockets().accepted(&accepted.stream);
    let Accepted { stream, source, local, place, .. } = accepted;
    let proven = tokio::select! {
        biased;
        () = drain.forced() => return,
        proven = server::prove(&ctx, stream, place) => proven,
    };
    match proven {
        Ok((peer, session)) => {
            let outer = Arc::new(Outer { ctx: Arc::clone(&ctx), globals, peer, source, local });
            server::drive(&ctx, source, session, drain, |request| {
                let (head, responder) = request.into_parts();
                let head = head.map_err(|bad| (bad.status(), Error::BadRequest(bad.to_string())));
                Arc::clone(&outer).serve(head, responder)
            })
            .await;
        }
        Err(error) => access_log::early(source, local, Direction::Inbound, &error),
    }
}

/// An outer tunnel.
struct Outer {
    ctx: Arc<PodContext>,
    globals: Arc<dyn Globals>,
    peer: PeerIdentity,
    source: SocketAddr,
    local: SocketAddr,
}

type Refused = (ConnectStatus, Error);

/// A stream that was not passed on.
enum Failed {
    /// Nobody was tried.
    Early(Refused),
    /// The last endpoint that was tried.
    Late(Record, Error),
}

impl Outer {
    async fn serve(self: Arc<Self>, head: Result<Head, Refused>, mut responder: Responder) {
        let connected = match head {
            Ok(head) => Box::pin(self.connect(&head, &mut responder)).await,
            Err(refused) => Err(Failed::Early(refused)),
        };
        match connected {
            Ok((pod, mut record, tracked)) => {
                let traffic = record.open();
                match responder.accept(None) {
                    // The pod is the local side, as the application is at a pod.
                    Ok(stream) => record.finish(copy::tunnel(pod, stream, &traffic).await),
                    Err(error) => record.fail(&Error::Open(error)),
                }
                drop(tracked);
            }
            Err(Failed::Early((status, error))) => {
                access_log::early(self.source, self.local, Direction::Inbound, &error);
                responder.reject(status);
            }
            Err(Failed::Late(record, error)) => {
                responder.reject(ConnectStatus::SERVICE_UNAVAILABLE);
                record.fail(&error);
            }
        }
    }

    /// Connects to one endpoint after the other, until one is there.
    async fn connect(
        &self,
        head: &Head,
        responder: &mut Responder,
    ) -> Result<(TcpStream, Record, Tracked), Failed> {
        let (ctx, metrics) = (&self.ctx, &self.ctx.proxy().metrics);
        let mut tries = RetryState::begin(ctx.proxy().config.retry, &mut ctx.memory().lock(), Instant::now());
        let mut last: Option<(Record, Error)> = None;
        loop {
            let target = match self.choose(head, &tries) {
                Ok(target) => target,
                Err(refused) => {
                    let Some((mut record, error)) = last else { return Err(Failed::Early(refused)) };
                    record.tell(&tries, Some(GiveUpReason::NobodyElse));
                    metrics.retries.gave_up(GiveUpReason::NobodyElse);
                    return Err(Failed::Late(record, error));
                }
            };
            if let Some((record, _)) = last.take() {
                record.discard();
            }
            tries.again();
            let opening = self.opening(head.clone(), &target);
            let mut record = Record::new(Arc::clone(metrics), opening).begun().since(tries.started());
            let tracked = self.track(head, target.addr);
            let dialled = tokio::select! {
                dialled = self.dial(target.addr) => dialled,
                () = responder.cancelled() => Err(Error::GivenUp),
            };
            let picks = std::slice::from_ref(&target.pick);
            let error = match dialled {
                Ok(pod) => {
                    tries.reached(picks, &mut ctx.memory().lock(), Instant::now());
                    record.tell(&tries, None);
                    return Ok((pod, record, tracked));
                }
                Err(error) => error,
            };
            let cause = Cause::of(&error);
            let missed = FailedAttempt { cause, depth: Hop::Outer, to: target.addr, picks };
            let (again, ejected) = tries.missed(&missed, &mut ctx.memory().lock(), Instant::now());
            metrics.retries.missed(cause, again, ejected);
            if let Err(why) = again {
                record.tell(&tries, Some(why));
                return Err(Failed::Late(record, error));
            }
            last = Some((record, error));
        }
    }

    async fn dial(&self, to: SocketAddr) -> Result<TcpStream, Error> {
        let deadline = self.ctx.proxy().config.dial_deadline;
        self.ctx.sockets().connect(to, None, deadline).await.map_err(Error::hbone_dial)
    }

    fn track(&self, head: &Head, to: SocketAddr) -> Tracked {
        self.ctx.connections().outbound(Connection {
            src: self.source,
            original_dst: Some(head.authority.to_string()),
            actual_dst: to,
            protocol: Carrier::Hbone,
        })
    }

    fn choose(&self, head: &Head, tries: &RetryState) -> Result<GatewayTarget, Refused> {
        let Authority::Host { hostname, port } = &head.authority else {
            let text = format!("a gateway is asked for services by name, not for {}", head.authority);
            return Err((ConnectStatus::BAD_REQUEST, Error::BadRequest(text)));
        };
        let snapshot = self.ctx.snapshot();
        let network = &self.ctx.proxy().network;
        let is_global = |service: &_| self.globals.is_global(service);
        let experience = self.ctx.memory().lock();
        let learnt = Learnt::of(&experience, tries, network);
        let rng = &mut fastrand::Rng::new();
        gateway_target(&snapshot, hostname, *port, network, is_global, &learnt, rng)
            .map_err(|refusal| (ConnectStatus::SERVICE_UNAVAILABLE, Error::Gateway(refusal)))
    }

    fn opening(&self, head: Head, target: &GatewayTarget) -> Opening {
        // Clients of other networks have no address here; they are named as they call themselves, for the log.
        let address = NetworkAddress { network: self.ctx.proxy().network.clone(), address: self.source.ip() };
        let snapshot = self.ctx.snapshot();
        let client = snapshot.workload_by_addr(&address).filter(|found| found.identity() == *self.peer.id());
        let identity = Some(self.peer.id().clone());
        let mut source = End::of(client.map(|client| &**client), identity.clone());
        if let (None, Some(said)) = (client, &head.baggage) {
            source = baggage::from_baggage(said);
            source.party.principal = identity;
        }
        Opening {
            reporter: Reporter::Gateway,
            direction: Direction::Inbound,
            src: self.source,
            source,
            dst: target.addr,
            hbone: Some(head.authority),
            service: Some(ServiceLabels::of(&target.service)),
            destination: End::of(Some(&target.workload), Some(target.workload.identity())),
            mutual_tls: true,
        }
    }
}
