//! 15008 of the gateway: ends the outer tunnel, chooses an endpoint, and passes the inner bytes to that pod's own 15008.
//! Any member of the trust domain may ask; whether it is let in is decided by the pod, which sees its identity.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::Head;
use isthmus_hbone::copy;
use isthmus_hbone::server::Responder;
use isthmus_identity::PeerIdentity;
use isthmus_model::{Authority, NetworkAddress};
use isthmus_rt::drain::Watch;
use isthmus_state::{GatewayTarget, NoHints, gateway_target};

use super::Globals;
use crate::access_log;
use crate::conns::{Carrier, Conn};
use crate::error::Error;
use crate::inbound;
use crate::labels;
use crate::listener::Accepted;
use crate::metrics::Reporter;
use crate::metrics::labels::ServiceLabels;
use crate::record::{Direction, End, Opening, Record};
use crate::scope::Scope;

const BAD_REQUEST: u16 = 400;
const UNAVAILABLE: u16 = 503;

/// Serves one outer connection to its end.
pub(super) async fn accept(scope: Arc<Scope>, globals: Arc<dyn Globals>, accepted: Accepted, drain: Watch) {
    let _open = scope.world().metrics.socket(Reporter::Gateway);
    scope.sockets().accepted(&accepted.stream);
    let Accepted { stream, source, local, place, .. } = accepted;
    let proven = tokio::select! {
        biased;
        () = drain.forced() => return,
        proven = inbound::prove(&scope, stream, place) => proven,
    };
    match proven {
        Ok((peer, session)) => {
            let outer = Arc::new(Outer { scope: Arc::clone(&scope), globals, peer, source, local });
            inbound::drive(&scope, source, session, drain, |request| {
                let (head, responder) = request.into_parts();
                let head = head.map_err(|bad| (bad.status, Error::BadRequest(bad.text)));
                Arc::clone(&outer).serve(head, responder)
            })
            .await;
        }
        Err(error) => access_log::early(source, local, Direction::Inbound, &error),
    }
}

/// An outer tunnel.
struct Outer {
    scope: Arc<Scope>,
    globals: Arc<dyn Globals>,
    peer: PeerIdentity,
    source: SocketAddr,
    local: SocketAddr,
}

type Refused = (u16, Error);

impl Outer {
    async fn serve(self: Arc<Self>, head: Result<Head, Refused>, responder: Responder) {
        match head.and_then(|head| self.choose(head)) {
            Ok((head, target)) => self.forward(head, target, responder).await,
            Err((status, error)) => {
                access_log::early(self.source, self.local, Direction::Inbound, &error);
                responder.reject(status);
            }
        }
    }

    fn choose(&self, head: Head) -> Result<(Head, GatewayTarget), Refused> {
        let Authority::Host { hostname, port } = &head.authority else {
            let text = format!("a gateway is asked for services by name, not for {}", head.authority);
            return Err((BAD_REQUEST, Error::BadRequest(text)));
        };
        let snapshot = self.scope.snapshot();
        let network = &self.scope.world().network;
        let is_global = |service: &_| self.globals.is_global(service);
        let rng = &mut fastrand::Rng::new();
        gateway_target(&snapshot, hostname, *port, network, is_global, &NoHints, rng)
            .map(|target| (head, target))
            .map_err(|refusal| (UNAVAILABLE, Error::Gateway(refusal)))
    }

    async fn forward(&self, head: Head, target: GatewayTarget, mut responder: Responder) {
        let (scope, to) = (&self.scope, target.addr);
        let conn = Conn {
            src: self.source,
            original_dst: Some(head.authority.to_string()),
            actual_dst: to,
            protocol: Carrier::Hbone,
        };
        let _tracked = scope.connections().outbound(conn);
        let mut record = Record::new(Arc::clone(&scope.world().metrics), self.opening(head, &target));
        let traffic = record.open();
        let dialled = tokio::select! {
            dialled = scope.sockets().connect(to, None, scope.world().config.dial_deadline) => {
                dialled.map_err(Error::hbone_dial)
            }
            () = responder.cancelled() => Err(Error::GivenUp),
        };
        match dialled {
            Ok(pod) => match responder.accept(None) {
                // The pod is the local side, as the application is at a pod.
                Ok(stream) => record.finish(copy::tunnel(pod, stream, &traffic).await),
                Err(error) => record.fail(&Error::Open(error)),
            },
            Err(error) => {
                responder.reject(UNAVAILABLE);
                record.fail(&error);
            }
        }
    }

    fn opening(&self, head: Head, target: &GatewayTarget) -> Opening {
        // Clients of other networks have no address here; they are named as they call themselves, for the log.
        let address =
            NetworkAddress { network: self.scope.world().network.clone(), address: self.source.ip() };
        let snapshot = self.scope.snapshot();
        let client = snapshot.workload_by_addr(&address).filter(|found| found.identity() == *self.peer.id());
        let identity = Some(self.peer.id().clone());
        let mut source = End::of(client.map(|client| &**client), identity.clone());
        if let (None, Some(said)) = (client, &head.baggage) {
            source = labels::from_baggage(said);
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
