//! One CONNECT: judged, then carried to the application. Forwarding takes two proofs, the peer's identity and the
//! policy's permit; no header can stand in for either.

use std::sync::Arc;

use isthmus_hbone::copy;
use isthmus_hbone::server::{Request, Responder};
use isthmus_identity::PeerIdentity;
use isthmus_model::Facts;
use isthmus_state::Permit;
use tokio::net::TcpStream;

use super::Arrival;
use super::admit::{Admitted, admit};
use super::app_tunnel;
use crate::access_log;
use crate::app;
use crate::conns::{Carrier, Conn, Tracked};
use crate::error::Error;
use crate::labels;
use crate::record::{Direction, Record};
use crate::scope::Scope;

/// A policy said no.
const UNAUTHORIZED: u16 = 401;
/// The application cannot be reached.
const UNAVAILABLE: u16 = 503;

/// Answers one CONNECT and serves it to its end.
pub(super) async fn serve(scope: Arc<Scope>, arrival: Arc<Arrival>, request: Request) {
    let (head, responder) = request.into_parts();
    match Box::pin(admit(&scope, &arrival, head)).await {
        Ok((admitted, opening)) => {
            let record = Record::new(Arc::clone(&scope.world().metrics), opening);
            Judged::enter(&scope, &arrival, admitted, record).serve(responder).await;
        }
        Err(refused) => {
            access_log::early(arrival.source, arrival.local, Direction::Inbound, &refused.error);
            responder.reject(refused.status);
        }
    }
}

/// A CONNECT in the connection table, before and while it is carried.
struct Judged<'a> {
    scope: &'a Scope,
    arrival: &'a Arrival,
    admitted: Admitted,
    facts: Facts,
    tracked: Tracked,
    record: Record,
}

impl<'a> Judged<'a> {
    /// In the table first and judged after, so that no policy change falls between the two.
    fn enter(scope: &'a Scope, arrival: &'a Arrival, admitted: Admitted, mut record: Record) -> Self {
        record.open();
        let facts = Facts {
            peer: Some(arrival.peer.id().clone()),
            source: arrival.source.ip(),
            destination: admitted.target,
        };
        let conn = Conn {
            src: arrival.source,
            original_dst: admitted.host.clone(),
            actual_dst: admitted.target,
            protocol: Carrier::Hbone,
        };
        let tracked = scope.connections().inbound(conn, facts.clone());
        Self { scope, arrival, admitted, facts, tracked, record }
    }

    async fn serve(self, mut responder: Responder) {
        let verdict = tokio::select! {
            biased;
            verdict = self.scope.judge(&self.admitted.workload, &self.facts) => verdict.map_err(Error::Denied),
            () = responder.cancelled() => Err(Error::GivenUp),
        };
        match verdict {
            Ok(permit) => {
                let peer = self.arrival.peer.clone();
                self.forward(&peer, permit, responder).await;
            }
            Err(error) => {
                responder.reject(UNAUTHORIZED);
                self.record.fail(&error);
            }
        }
    }

    /// Connects to the application and copies. Both proofs are needed to get here.
    async fn forward(mut self, peer: &PeerIdentity, permit: Permit, mut responder: Responder) {
        tracing::debug!(pod = %self.scope.name(), peer = %peer.id(), allowed_by = ?permit.allowed_by(), "permitted");
        let dialled = tokio::select! {
            dialled = app::dial(self.scope, self.arrival.source, self.admitted.dial()) => dialled,
            () = responder.cancelled() => Err(Error::GivenUp),
            refusal = self.tracked.refused() => {
                responder.reject(UNAUTHORIZED);
                return self.record.fail(&Error::PolicyChanged(refusal));
            }
        };
        match dialled {
            Ok(app) => self.carry(peer, responder, app).await,
            Err(error) => {
                responder.reject(UNAVAILABLE);
                self.record.fail(&error);
            }
        }
    }

    async fn carry(mut self, peer: &PeerIdentity, responder: Responder, mut app: TcpStream) {
        let baggage = self.scope.world().config.baggage.then(|| labels::baggage(&self.admitted.workload));
        let stream = match responder.accept(baggage) {
            Ok(stream) => stream,
            Err(error) => return self.record.fail(&Error::Open(error)),
        };
        if let Some(destination) = self.admitted.announce
            && let Err(error) =
                app_tunnel::announce(&mut app, self.arrival.source, destination, peer.id()).await
        {
            return self.record.fail(&Error::Preface(error));
        }
        let traffic = self.record.open();
        tokio::select! {
            biased;
            // Dropping the copy resets the stream and the application's connection.
            refusal = self.tracked.refused() => self.record.fail(&Error::PolicyChanged(refusal)),
            ended = copy::tunnel(app, stream, &traffic) => self.record.finish(ended),
        }
    }
}
