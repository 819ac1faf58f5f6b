//! 15008 of the gateway: terminates the outer tunnel, chooses an endpoint, and forwards the inner bytes to the 15008 of
//! that pod. Any member of the trust domain may ask; whether it is admitted is decided by the pod, which sees the client's
//! identity in the inner tunnel.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::copy;
use isthmus_hbone::server::Responder;
use isthmus_hbone::{ConnectStatus, Head};
use isthmus_identity::PeerIdentity;
use isthmus_model::{Authority, NetworkAddress};
use isthmus_rt::descriptors::DescriptorPermit;
use isthmus_rt::drain::Watch;
use isthmus_state::route::Picks;
use isthmus_state::{Ejected, GatewayTarget, gateway_target};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::Globals;
use crate::accept::Accepted;
use crate::context::PodContext;
use crate::error::Error;
use crate::outbound::retry_loop::{self, AttemptError, Connected, Failed, NoChoice, PeerClaims, Upstreams};
use crate::retry::{GiveUpReason, Protection, RetryState};
use crate::server;
use crate::telemetry::access_log;
use crate::telemetry::baggage;
use crate::telemetry::{EndpointInfo, Opening, Record, ServiceLabels};
use crate::tracker::{Connection, Tracked};
use crate::types::{Carrier, Direction, Reporter};

/// Serves one outer tunnel until it ends.
pub(super) async fn accept(
    ctx: Arc<PodContext>,
    globals: Arc<dyn Globals>,
    accepted: Accepted,
    drain: Watch,
) {
    let _open = ctx.proxy().metrics.count_socket(Reporter::Gateway);
    let local = accepted.local();
    let Accepted { stream, source, slot, .. } = accepted;
    let proven = tokio::select! {
        biased;
        () = drain.forced() => return,
        proven = server::prove(&ctx, stream, slot) => proven,
    };
    match proven {
        Ok((peer, session)) => {
            let outer = Arc::new(Outer { ctx: Arc::clone(&ctx), globals, peer, source, local });
            let from = (&outer.peer, source, local);
            server::drive(&ctx, from, session, drain, |request| {
                let (head, responder) = request.into_parts();
                let head = head.map_err(|bad| (bad.status(), bad.into()));
                Arc::clone(&outer).serve(head, responder)
            })
            .await;
        }
        Err(error) => access_log::failed(&ctx.proxy().metrics, (source, local), Direction::Inbound, &error),
    }
}

/// An outer tunnel and its client.
struct Outer {
    ctx: Arc<PodContext>,
    globals: Arc<dyn Globals>,
    peer: PeerIdentity,
    source: SocketAddr,
    local: SocketAddr,
}

/// A connection to a pod, with the permit of its descriptor.
type CountedStream = (TcpStream, DescriptorPermit);

/// A status for the peer and an error for the log.
type Refused = (ConnectStatus, Error);

impl Outer {
    async fn serve(self: Arc<Self>, head: Result<Head, Refused>, mut responder: Responder) {
        let connected = match head {
            Ok(head) => Box::pin(self.connect(&head, &mut responder)).await,
            Err(refused) => Err(Failed::BeforeAttempt(refused)),
        };
        match connected {
            Ok(Connected { mut record, tracked, upstream: (upstream, _descriptor) }) => {
                let traffic = record.open();
                match responder.accept(None) {
                    // The pod is the local side, as the application is at a pod.
                    Ok(stream) => record.finish(copy::tunnel(upstream, stream, Arc::new(traffic)).await),
                    Err(error) => record.fail(&Error::Open(error)),
                }
                drop(tracked);
            }
            Err(Failed::BeforeAttempt((status, error))) => {
                access_log::failed(
                    &self.ctx.proxy().metrics,
                    (self.source, self.local),
                    Direction::Inbound,
                    &error,
                );
                responder.reject(status);
            }
            Err(Failed::Attempt(record, error)) => {
                responder.reject(ConnectStatus::SERVICE_UNAVAILABLE);
                record.fail(&error);
            }
        }
    }

    async fn connect(
        &self,
        head: &Head,
        responder: &mut Responder,
    ) -> Result<Connected<CountedStream>, Failed<Refused>> {
        retry_loop::connect(&self.ctx, GatewayUpstreams { outer: self, head, responder }).await
    }

    async fn dial(&self, to: SocketAddr) -> Result<CountedStream, Error> {
        let descriptor = self.ctx.descriptor()?;
        let deadline = self.ctx.proxy().config.dial_deadline;
        let connected = self.ctx.sockets().connect(to, None, deadline).await;
        Ok((connected.map_err(Error::hbone_dial)?, descriptor))
    }

    fn track(&self, head: &Head, to: SocketAddr) -> Tracked {
        self.ctx.connections().outbound(Connection {
            src: self.source,
            original_dst: Some(head.authority.to_string()),
            actual_dst: to,
            protocol: Carrier::Hbone,
        })
    }

    fn choose(&self, head: &Head, retry: &RetryState) -> Result<GatewayTarget, Refused> {
        let (hostname, port) = match &head.authority {
            Authority::Host { hostname, port } => (hostname, port),
            Authority::Ip(address) => return Err((ConnectStatus::BAD_REQUEST, Error::NotByName(*address))),
        };
        // A copy, so that the pod's lock is not held while tables are built.
        let ejected = self.ctx.retry_state().ejected();
        let ejected = ejected.as_deref().map(|endpoints| Ejected { endpoints, now: Instant::now() });
        let (snapshot, network) = (self.ctx.snapshot(), &self.ctx.proxy().network);
        let is_global = |service: &_| self.globals.is_global(service);
        let (avoid, rng) = (retry.avoid(ejected), &mut fastrand::Rng::new());
        gateway_target(&snapshot, hostname, *port, network, is_global, avoid, rng)
            .map_err(|refusal| (ConnectStatus::SERVICE_UNAVAILABLE, Error::Gateway(refusal)))
    }

    fn opening(&self, head: Head, target: &GatewayTarget) -> Opening {
        // A client of another network has no address in this one; the log names it by its own baggage.
        let address = NetworkAddress { network: self.ctx.proxy().network.clone(), address: self.source.ip() };
        let snapshot = self.ctx.snapshot();
        let client = snapshot.workload_by_addr(&address).filter(|found| found.identity() == *self.peer.id());
        let identity = self.peer.id();
        let source = match (client, &head.baggage) {
            (Some(client), _) => EndpointInfo::new(Some(client), Some(identity.clone())),
            (None, Some(claimed)) => baggage::from_baggage(claimed, Some(identity)),
            (None, None) => EndpointInfo::proven(identity),
        };
        let workload = &target.pick.workload;
        Opening {
            reporter: Reporter::Gateway,
            direction: Direction::Inbound,
            src: self.source,
            source,
            dst: target.addr,
            hbone: Some(head.authority),
            service: Some(ServiceLabels::of(&target.service)),
            destination: EndpointInfo::new(Some(workload), Some(workload.identity())),
            mutual_tls: true,
        }
    }
}

/// The endpoints of the service that a CONNECT asks for.
struct GatewayUpstreams<'a> {
    outer: &'a Outer,
    head: &'a Head,
    responder: &'a mut Responder,
}

impl Upstreams for GatewayUpstreams<'_> {
    type Choice = GatewayTarget;
    type Conn = CountedStream;
    type Refusal = Refused;

    async fn choose(&mut self, retry: &RetryState) -> Result<GatewayTarget, NoChoice<Refused>> {
        let chosen = self.outer.choose(self.head, retry);
        chosen.map_err(|refusal| NoChoice { refusal, reason: GiveUpReason::NoOtherEndpoint })
    }

    fn picks(choice: &GatewayTarget) -> Picks<'_> {
        Picks::Peer(&choice.pick)
    }

    /// The inner tunnel protects the bytes wherever they are forwarded to.
    fn protection(_: &GatewayTarget) -> Protection {
        Protection::Direct
    }

    fn start(&self, choice: &GatewayTarget) -> (Record, Tracked) {
        let opening = self.outer.opening(self.head.clone(), choice);
        let record = Record::new(Arc::clone(&self.outer.ctx.proxy().metrics), opening).logged_on_drop();
        (record, self.outer.track(self.head, choice.addr))
    }

    async fn attempt(
        &mut self,
        choice: &GatewayTarget,
    ) -> Result<(CountedStream, Option<PeerClaims>), AttemptError> {
        let dialled = tokio::select! {
            dialled = self.outer.dial(choice.addr) => dialled,
            () = self.responder.cancelled() => Err(Error::ClientReset),
        };
        dialled.map(|pod| (pod, None)).map_err(AttemptError::outer)
    }
}
