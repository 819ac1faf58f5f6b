//! One CONNECT: judged, then carried to the application. Forwarding takes two proofs, the peer's identity and the
//! policy's permit; no header can stand in for either.

use std::sync::Arc;

use isthmus_hbone::ConnectStatus;
use isthmus_hbone::copy;
use isthmus_hbone::server::{Request, Responder};
use isthmus_identity::PeerIdentity;
use isthmus_model::Facts;
use isthmus_state::Permit;
use tokio::net::TcpStream;

use super::proxy_protocol;
use super::request::{Admitted, Arrival, admit};
use crate::context::PodContext;
use crate::dial::app;
use crate::error::Error;
use crate::telemetry::Record;
use crate::telemetry::access_log;
use crate::telemetry::baggage;
use crate::tracker::{Connection, Tracked};
use crate::types::{Carrier, Direction};

/// Answers one CONNECT and serves it to its end.
pub(super) async fn serve(ctx: Arc<PodContext>, arrival: Arc<Arrival>, request: Request) {
    let (head, responder) = request.into_parts();
    match Box::pin(admit(&ctx, &arrival, head)).await {
        Ok((admitted, opening)) => {
            let record = Record::new(Arc::clone(&ctx.proxy().metrics), opening);
            Judged::enter(&ctx, &arrival, admitted, record).serve(responder).await;
        }
        Err(refused) => {
            access_log::early(arrival.source, arrival.local, Direction::Inbound, &refused.error);
            responder.reject(refused.status);
        }
    }
}

/// A CONNECT in the connection table, before and while it is carried.
struct Judged<'a> {
    ctx: &'a PodContext,
    arrival: &'a Arrival,
    admitted: Admitted,
    facts: Facts,
    tracked: Tracked,
    record: Record,
}

impl<'a> Judged<'a> {
    /// In the table first and judged after, so that no policy change falls between the two.
    fn enter(ctx: &'a PodContext, arrival: &'a Arrival, admitted: Admitted, mut record: Record) -> Self {
        record.open();
        let facts = Facts {
            peer: Some(arrival.peer.id().clone()),
            source: arrival.source.ip(),
            destination: admitted.target,
        };
        let conn = Connection {
            src: arrival.source,
            original_dst: admitted.host.clone(),
            actual_dst: admitted.target,
            protocol: Carrier::Hbone,
        };
        let tracked = ctx.connections().inbound(conn, facts.clone());
        Self { ctx, arrival, admitted, facts, tracked, record }
    }

    async fn serve(self, mut responder: Responder) {
        let verdict = tokio::select! {
            biased;
            verdict = self.ctx.judge(&self.admitted.workload, &self.facts) => verdict.map_err(Error::Denied),
            () = responder.cancelled() => Err(Error::GivenUp),
        };
        match verdict {
            Ok(permit) => {
                let peer = self.arrival.peer.clone();
                self.forward(&peer, permit, responder).await;
            }
            Err(error) => {
                responder.reject(ConnectStatus::UNAUTHORIZED);
                self.record.fail(&error);
            }
        }
    }

    /// Connects to the application and copies. Both proofs are needed to get here.
    async fn forward(mut self, peer: &PeerIdentity, permit: Permit, mut responder: Responder) {
        tracing::debug!(pod = %self.ctx.name(), peer = %peer.id(), allowed_by = ?permit.allowed_by(), "permitted");
        let dialled = tokio::select! {
            dialled = app::dial(self.ctx, self.arrival.source, self.admitted.dial()) => dialled,
            () = responder.cancelled() => Err(Error::GivenUp),
            refusal = self.tracked.refused() => {
                responder.reject(ConnectStatus::UNAUTHORIZED);
                return self.record.fail(&Error::PolicyChanged(refusal));
            }
        };
        match dialled {
            Ok(app) => self.carry(peer, responder, app).await,
            Err(error) => {
                responder.reject(ConnectStatus::SERVICE_UNAVAILABLE);
                self.record.fail(&error);
            }
        }
    }

    async fn carry(mut self, peer: &PeerIdentity, responder: Responder, mut app: TcpStream) {
        let baggage = self.ctx.proxy().config.baggage.then(|| baggage::baggage(&self.admitted.workload));
        let stream = match responder.accept(baggage) {
            Ok(stream) => stream,
            Err(error) => return self.record.fail(&Error::Open(error)),
        };
        if let Some(destination) = self.admitted.announce
            && let Err(error) =
                proxy_protocol::announce(&mut app, self.arrival.source, destination, peer.id()).await
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
