//! One CONNECT of an inbound tunnel: authorized, then forwarded to the application. Forwarding requires a
//! [`PeerIdentity`] from the TLS handshake and a [`Permit`] from policy; neither can be derived from a header.

use std::sync::Arc;

use isthmus_hbone::copy;
use isthmus_hbone::handover::ResumedCopy;
use isthmus_hbone::server::{Request, Responder};
use isthmus_hbone::{ConnectStatus, Stream};
use isthmus_identity::PeerIdentity;
use isthmus_model::Facts;
use isthmus_rt::descriptors::DescriptorPermit;
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
    // Boxed so that a stream that only copies does not keep the memory that connecting needed.
    if let Some(connected) = Box::pin(connect(&ctx, &tunnel, request)).await {
        connected.carry(&ctx).await;
    }
}

/// Answers one CONNECT; `None` when it was refused.
async fn connect(ctx: &PodContext, tunnel: &InboundTunnel, request: Request) -> Option<ConnectedStream> {
    let (head, responder) = request.into_parts();
    match validate(ctx, tunnel, head).await {
        Ok((connect, opening)) => {
            let record = Record::new(Arc::clone(&ctx.proxy().metrics), opening).logged_on_drop();
            TrackedConnect::new(ctx, tunnel, connect, record).authorize(responder).await
        }
        Err(rejected) => {
            access_log::failed(
                &ctx.proxy().metrics,
                (tunnel.source, tunnel.local),
                Direction::Inbound,
                &rejected.error,
            );
            responder.reject(rejected.status);
            None
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

/// A stream and the application that it leads to.
struct ConnectedStream {
    tracked: Tracked,
    record: Record,
    stream: Stream,
    app: TcpStream,
    descriptor: DescriptorPermit,
}

/// A stream of a tunnel that is handed over.
pub(crate) struct MovedStream {
    pub(crate) copy: ResumedCopy,
    pub(crate) record: Record,
    pub(crate) conn: Connection,
    pub(crate) descriptor: Option<DescriptorPermit>,
}

impl<'a> TrackedConnect<'a> {
    /// Adds the connection to the table before it is authorized: a policy change after the authorization then
    /// rechecks it.
    fn new(ctx: &'a PodContext, tunnel: &'a InboundTunnel, connect: ValidConnect, record: Record) -> Self {
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

    async fn authorize(mut self, mut responder: Responder) -> Option<ConnectedStream> {
        let authorized = tokio::select! {
            biased;
            authorized = self.ctx.authorize(&self.connect.workload, &self.facts) => {
                authorized.map_err(Error::Denied)
            }
            () = responder.cancelled() => Err(Error::ClientReset),
        };
        match authorized {
            Ok(permit) => {
                // A refused client is counted by what it proved: it must not choose the labels of other pods' dashboards.
                if let Some(claimed) = self.connect.claimed.take() {
                    self.record.set_source(claimed);
                }
                self.record.open();
                let peer = self.tunnel.peer.clone();
                self.forward(&peer, permit, responder).await
            }
            Err(error) => {
                responder.reject(ConnectStatus::UNAUTHORIZED);
                self.record.fail(&error);
                None
            }
        }
    }

    /// Connects to the application at the permitted destination and answers.
    async fn forward(
        mut self,
        peer: &PeerIdentity,
        permit: Permit,
        mut responder: Responder,
    ) -> Option<ConnectedStream> {
        let (dst, policy) = (permit.destination(), permit.allowed_by().map(tracing::field::display));
        let src = self.tunnel.source;
        tracing::debug!(pod = %self.ctx.name(), peer = %peer.id(), %src, %dst, policy, "connection allowed");
        let app_addr = self.connect.app_addr(dst);
        let connected = tokio::select! {
            connected = app::dial(self.ctx, self.tunnel.source, app_addr) => connected,
            () = responder.cancelled() => Err(Error::ClientReset),
            refusal = self.tracked.denied() => {
                responder.reject(ConnectStatus::UNAUTHORIZED);
                self.record.fail(&Error::PolicyChanged(refusal));
                return None;
            }
        };
        match connected {
            Ok((app, descriptor)) => match self.answer(peer, responder, app).await {
                Ok((stream, app)) => {
                    let Self { tracked, record, .. } = self;
                    Some(ConnectedStream { tracked, record, stream, app, descriptor })
                }
                Err(error) => {
                    self.record.fail(&error);
                    None
                }
            },
            Err(error) => {
                responder.reject(ConnectStatus::SERVICE_UNAVAILABLE);
                self.record.fail(&error);
                None
            }
        }
    }

    /// Answers 200, and tells the application of its client if it expects so.
    async fn answer(
        &self,
        peer: &PeerIdentity,
        responder: Responder,
        mut app: TcpStream,
    ) -> Result<(Stream, TcpStream), Error> {
        let baggage = self.ctx.proxy().config.baggage.then(|| baggage::for_workload(&self.connect.workload));
        let stream = responder.accept(baggage).map_err(Error::Open)?;
        if let Some(destination) = self.connect.proxy_header {
            let header = proxy_protocol::write_header(&mut app, self.tunnel.source, destination, peer.id());
            header.await.map_err(Error::Preface)?;
        }
        Ok((stream, app))
    }
}

impl ConnectedStream {
    /// Copies until the stream is closed, or a change of policy closes it.
    async fn carry(mut self, ctx: &PodContext) {
        let traffic = self.record.open();
        let _descriptor = self.descriptor;
        let at = (self.stream.tunnel(), self.stream.id());
        let app = Arc::new(self.app);
        let young = Arc::downgrade(&app);
        tokio::select! {
            biased;
            // Dropping the copy resets the stream and the connection to the application.
            refusal = self.tracked.denied() => self.record.fail(&Error::PolicyChanged(refusal)),
            ended = copy::tunnel(app, self.stream, Arc::new(traffic)) => {
                ctx.finish(at, self.record, self.tracked, ended);
            }
            () = ctx.sockets().keep_alive_when_old(young) => {}
        }
    }
}

/// Goes on with a stream that another process had authorized. Policy is evaluated again, with what this process has
/// proved of the peer.
pub(super) async fn resume(ctx: Arc<PodContext>, tunnel: InboundTunnel, moved: MovedStream) {
    let MovedStream { copy, mut record, conn, descriptor: _descriptor } = moved;
    let (peer, source) = (Some(tunnel.peer.id().clone()), tunnel.source.ip());
    let facts = Facts { peer, source, destination: conn.actual_dst };
    // In the table first: a change of policy after the check then rechecks it.
    let mut tracked = ctx.connections().inbound(conn, facts.clone());
    if let Err(refusal) = ctx.recheck_one(&facts) {
        // Dropping the copy resets the stream and the connection to the application.
        return record.fail(&Error::PolicyChanged(refusal));
    }
    let traffic = record.open();
    let at = (copy.tunnel(), copy.stream());
    tokio::select! {
        biased;
        refusal = tracked.denied() => record.fail(&Error::PolicyChanged(refusal)),
        ended = copy.run(Arc::new(traffic)) => match ended {
            Ok(ended) => ctx.finish(at, record, tracked, ended),
            Err(error) => record.fail(&Error::NotResumed(error)),
        },
    }
}
