//! Port 15006: captured plaintext to the pod. Authorized by the same policies as HBONE, without a peer identity.

use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_hbone::copy::{self, PlainParts};
use isthmus_model::{Facts, NetworkAddress, Workload};
use isthmus_rt::drain::Watch;
use isthmus_state::{Permit, service_label};
use isthmus_sys::socket::reset_on_close;
use tokio::net::TcpStream;

use crate::accept::Accepted;
use crate::context::PodContext;
use crate::dial::app;
use crate::dial::client_reset;
use crate::error::Error;
use crate::telemetry::access_log;
use crate::telemetry::{EndpointInfo, Opening, Record, ServiceLabels};
use crate::tracker::{Connection, Tracked};
use crate::types::{Carrier, Direction, Reporter};

/// Serves one plaintext connection to its end.
pub(crate) async fn serve(ctx: Arc<PodContext>, accepted: Accepted, drain: Watch) {
    let _socket_count = ctx.proxy().metrics.count_socket(Reporter::Destination);
    tokio::select! {
        biased;
        // A dropped record logs its connection as drained.
        () = drain.forced() => {}
        () = serve_until_closed(&ctx, accepted) => {}
    }
}

/// Goes on with a connection that another process had authorized. Policy is evaluated again.
pub(crate) async fn resume(
    ctx: Arc<PodContext>,
    parts: PlainParts,
    mut record: Record,
    conn: Connection,
    drain: Watch,
) {
    let _socket_count = ctx.proxy().metrics.count_socket(Reporter::Destination);
    let facts = Facts { peer: None, source: conn.src.ip(), destination: conn.actual_dst };
    // In the table first: a change of policy after the check then rechecks it.
    let mut tracked = ctx.connections().inbound(conn, facts.clone());
    if let Err(refusal) = ctx.recheck_one(&facts) {
        // Both connections were set to be reset when they were handed over.
        return record.fail(&Error::PolicyChanged(refusal));
    }
    let traffic = record.open();
    let pair = ctx.open_tunnels().register_pair(true);
    tokio::select! {
        biased;
        // As in `serve`.
        () = drain.forced() => {}
        refusal = tracked.denied() => record.fail(&Error::PolicyChanged(refusal)),
        ended = copy::resume_plain(parts, &traffic, pair.control()) => match ended {
            Ok(ended) => ctx.finish_pair(&pair, record, tracked, ended),
            Err(error) => record.fail(&Error::NotResumed(error.into())),
        },
    }
}

async fn serve_until_closed(ctx: &PodContext, accepted: Accepted) {
    let local = accepted.local();
    let Accepted { stream, source, original, .. } = accepted;
    let connection = PlaintextConnection { ctx, source, local, original };
    match Box::pin(connection.validate()).await {
        Ok(workload) => connection.serve(stream, &workload).await,
        Err(error) => {
            reset_on_close(&stream);
            access_log::failed(&ctx.proxy().metrics, (source, original), Direction::Inbound, &error);
        }
    }
}

/// One plaintext connection, without its socket.
struct PlaintextConnection<'a> {
    ctx: &'a PodContext,
    source: SocketAddr,
    local: SocketAddr,
    original: SocketAddr,
}

impl PlaintextConnection<'_> {
    /// Checks that the original destination is an address of this pod and not a port of the proxy.
    async fn validate(&self) -> Result<Arc<Workload>, Error> {
        if self.ctx.proxy().config.is_illegal(self.original.port()) {
            return Err(Error::Recursive(self.original));
        }
        let workload = self.ctx.workload().await?;
        let ip = self.original.ip();
        let is_known = workload.addresses.contains(&ip) || ip == self.local.ip();
        // A pod may have addresses that Kubernetes does not list: a virtual one, those of a second interface.
        if !is_known && !self.ctx.has_unlisted_address(ip) {
            return Err(Error::NotOurAddress { destination: self.original, pod: self.ctx.name().clone() });
        }
        Ok(workload)
    }

    async fn serve(self, stream: TcpStream, workload: &Workload) {
        let mut record = Record::new(Arc::clone(&self.ctx.proxy().metrics), self.opening(workload));
        record.open();
        let facts = Facts { peer: None, source: self.source.ip(), destination: self.original };
        let conn = Connection {
            src: self.source,
            original_dst: None,
            actual_dst: self.original,
            protocol: Carrier::Tcp,
        };
        // In the table before it is authorized: a policy change after the authorization then rechecks it.
        let tracked = self.ctx.connections().inbound(conn, facts.clone());
        match self.ctx.authorize(workload, &facts).await {
            Ok(permit) => self.forward(permit, stream, tracked, record).await,
            Err(denied) => {
                reset_on_close(&stream);
                record.fail(&Error::Denied(denied));
            }
        }
    }

    async fn forward(self, permit: Permit, stream: TcpStream, mut tracked: Tracked, mut record: Record) {
        let (dst, policy) = (permit.destination(), permit.allowed_by().map(tracing::field::display));
        tracing::debug!(pod = %self.ctx.name(), src = %self.source, %dst, policy, "connection allowed");
        let connected = tokio::select! {
            connected = app::dial(self.ctx, self.source, dst) => connected,
            () = client_reset::wait(&stream) => Err(Error::ClientReset),
            refusal = tracked.denied() => Err(Error::PolicyChanged(refusal)),
        };
        let (app, _descriptor) = match connected {
            Ok(connected) => connected,
            Err(error) => {
                reset_on_close(&stream);
                return record.fail(&error);
            }
        };
        self.ctx.sockets().keep_alive(&app);
        let traffic = record.open();
        let pair = self.ctx.open_tunnels().register_pair(true);
        tokio::select! {
            biased;
            // Dropping the copy resets both connections.
            refusal = tracked.denied() => record.fail(&Error::PolicyChanged(refusal)),
            // The application is the local side.
            ended = copy::plain(app, stream, &traffic, pair.control()) => {
                self.ctx.finish_pair(&pair, record, tracked, ended);
            }
        }
    }

    fn opening(&self, workload: &Workload) -> Opening {
        let (snapshot, network) = (self.ctx.snapshot(), &self.ctx.proxy().network);
        let address = NetworkAddress { network: network.clone(), address: self.source.ip() };
        let service = service_label(&snapshot, workload, None, self.original.port());
        Opening {
            reporter: Reporter::Destination,
            direction: Direction::Inbound,
            src: self.source,
            source: EndpointInfo::new(snapshot.workload_by_addr(&address).map(|workload| &**workload), None),
            dst: self.original,
            hbone: None,
            service: service.map(|service| ServiceLabels::of(service)),
            destination: EndpointInfo::new(Some(workload), Some(workload.identity())),
            mutual_tls: false,
        }
    }
}
