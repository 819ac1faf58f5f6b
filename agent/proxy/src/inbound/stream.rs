//! One CONNECT of an inbound tunnel: authorized, then forwarded to the application. Forwarding requires a
//! [`PeerIdentity`] from the TLS handshake and a [`Permit`] from policy; neither can be derived from a header.

use std::sync::Arc;

use isthmus_hbone::ConnectStatus;
use isthmus_hbone::copy;
use isthmus_hbone::server::{Request, Responder};
use isthmus_identity::PeerIdentity;
use isthmus_model::Facts;
use isthmus_state::Permit;
use tokio::net::TcpStream;

use super::proxy_protocol;
use super::request::{InboundTunnel, ValidConnect, validate};
use crate::context::PodContext;
use crate::dial::app;
use crate::error::Error;
use crate::telemetry::Record;
use crate::telemetry::access_log;
use crate::telemetry::baggage;
use crate::tracker::{Connection, Tracked};
use crate::types::{Carrier, Direction};

/// Answers one CONNECT and serves its stream until it is closed.
pub(crate) async fn serve(ctx: Arc<PodContext>, tunnel: Arc<InboundTunnel>, request: Request) {
    let (head, responder) = request.into_parts();
    match Box::pin(validate(&ctx, &tunnel, head)).await {
        Ok((connect, opening)) => {
            let record = Record::new(Arc::clone(&ctx.proxy().metrics), opening);
            TrackedConnect::new(&ctx, &tunnel, connect, record).serve(responder).await;
        }
        Err(rejected) => {
            access_log::failed(
                &ctx.proxy().metrics,
                (tunnel.source, tunnel.local),
                Direction::Inbound,
                &rejected.error,
            );
            responder.reject(rejected.status);
        }
    }
}

/// A CONNECT in the connection table, from before its authorization until its stream is closed.
struct TrackedConnect<'a> {
    ctx: &'a PodContext,
    tunnel: &'a InboundTunnel,
    connect: ValidConnect,
    facts: Facts,
    tracked: Tracked,
    record: Record,
}

impl<'a> TrackedConnect<'a> {
    /// Adds the connection to the table before it is authorized: a policy change after the authorization then
    /// rechecks it.
    fn new(
        ctx: &'a PodContext,
        tunnel: &'a InboundTunnel,
        connect: ValidConnect,
        mut record: Record,
    ) -> Self {
        record.open();
        let facts = Facts {
            peer: Some(tunnel.peer.id().clone()),
            source: tunnel.source.ip(),
            destination: connect.destination,
        };
        let conn = Connection {
            src: tunnel.source,
            original_dst: connect.host.clone(),
            actual_dst: connect.destination,
            protocol: Carrier::Hbone,
        };
        let tracked = ctx.connections().inbound(conn, facts.clone());
        Self { ctx, tunnel, connect, facts, tracked, record }
    }

    async fn serve(self, mut responder: Responder) {
        let authorized = tokio::select! {
            biased;
            authorized = self.ctx.authorize(&self.connect.workload, &self.facts) => {
                authorized.map_err(Error::Denied)
            }
            () = responder.cancelled() => Err(Error::ClientReset),
        };
        match authorized {
            Ok(permit) => {
                let peer = self.tunnel.peer.clone();
                self.forward(&peer, permit, responder).await;
            }
            Err(error) => {
                responder.reject(ConnectStatus::UNAUTHORIZED);
                self.record.fail(&error);
            }
        }
    }

    /// Connects to the application at the permitted destination and forwards the stream.
    async fn forward(mut self, peer: &PeerIdentity, permit: Permit, mut responder: Responder) {
        let (dst, policy) = (permit.destination(), permit.allowed_by().map(tracing::field::display));
        let src = self.tunnel.source;
        tracing::debug!(pod = %self.ctx.name(), peer = %peer.id(), %src, %dst, policy, "connection allowed");
        let app_addr = self.connect.app_addr(dst);
        let connected = tokio::select! {
            connected = app::dial(self.ctx, self.tunnel.source, app_addr) => connected,
            () = responder.cancelled() => Err(Error::ClientReset),
            refusal = self.tracked.denied() => {
                responder.reject(ConnectStatus::UNAUTHORIZED);
                return self.record.fail(&Error::PolicyChanged(refusal));
            }
        };
        match connected {
            Ok(app) => self.carry(peer, responder, app).await,
            Err(error) => {
                responder.reject(ConnectStatus::SERVICE_UNAVAILABLE);
                self.record.fail(&error);
            }
        }
    }

    async fn carry(mut self, peer: &PeerIdentity, responder: Responder, mut app: TcpStream) {
        let baggage = self.ctx.proxy().config.baggage.then(|| baggage::for_workload(&self.connect.workload));
        let stream = match responder.accept(baggage) {
            Ok(stream) => stream,
            Err(error) => return self.record.fail(&Error::Open(error)),
        };
        if let Some(destination) = self.connect.proxy_header
            && let Err(error) =
                proxy_protocol::write_header(&mut app, self.tunnel.source, destination, peer.id()).await
        {
            return self.record.fail(&Error::Preface(error));
        }
        let traffic = self.record.open();
        let app = Arc::new(app);
        let keepalive = self.ctx.sockets().keep_alive_when_old(Arc::downgrade(&app));
        tokio::select! {
            biased;
            // Dropping the copy resets the stream and the connection to the application.
            refusal = self.tracked.denied() => self.record.fail(&Error::PolicyChanged(refusal)),
            ended = copy::tunnel(app, stream, Arc::new(traffic)) => self.record.finish(ended),
            () = keepalive => {}
        }
    }
}
