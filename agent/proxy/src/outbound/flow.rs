//! One outbound connection and what is said of it, whichever way it goes.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isthmus_hbone::forwarded::Forwarded;
use isthmus_hbone::pool::Opened;
use isthmus_hbone::trace::TraceParent;
use isthmus_hbone::{Head, ResponseHead, Stream};
use isthmus_model::{Authority, SpiffeId, Workload};
use isthmus_state::route::{Destination, Route, Upstream};
use tokio::net::TcpStream;

use crate::context::PodContext;
use crate::dial::Dialer;
use crate::error::Error;
use crate::telemetry::baggage;
use crate::telemetry::{EndpointInfo, Opening, Record, ServiceLabels};
use crate::tracker::{Connection, Tracked};
use crate::types::{Carrier, Direction, PoolKey};

/// A client's connection that is to be sent somewhere.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) stream: TcpStream,
    pub(crate) source: SocketAddr,
    /// Where the client wanted to go.
    pub(crate) original: SocketAddr,
    /// Bytes that were already read from the client, to be sent first.
    pub(crate) first: Bytes,
}

/// On whose behalf, and what is known of the other end.
pub(crate) struct OutboundAttempt<'a> {
    pub(crate) ctx: &'a PodContext,
    pub(crate) workload: Arc<Workload>,
    pub(crate) destination: Destination,
}

impl OutboundAttempt<'_> {
    /// Starts the record of a connection that goes there.
    pub(super) fn begin(&self, flow: &Flow, route: &Route) -> Record {
        let hbone = upstream(route).filter(|_| !is_plain(route)).map(|upstream| upstream.authority.clone());
        let mutual_tls = hbone.is_some();
        let Destination { workload, service } = &self.destination;
        let expected = workload.as_deref().map(Workload::identity);
        let opening = Opening {
            reporter: self.ctx.reporter(),
            direction: Direction::Outbound,
            src: flow.source,
            source: EndpointInfo::new(Some(&self.workload), mutual_tls.then(|| self.workload.identity())),
            dst: to(flow, route),
            hbone,
            service: service.as_deref().map(ServiceLabels::of),
            destination: EndpointInfo::new(workload.as_deref(), expected),
            mutual_tls,
        };
        Record::new(Arc::clone(&self.ctx.proxy().metrics), opening).logged_on_drop()
    }

    /// Enters the connection into the pod's table.
    pub(super) fn track(&self, flow: &Flow, route: &Route) -> Tracked {
        let protocol = match route {
            Route::Hbone(_) => Carrier::Hbone,
            Route::DoubleHbone(_) => Carrier::DoubleHbone,
            Route::Tcp(_) | Route::Passthrough { .. } | Route::Deny(_) => Carrier::Tcp,
        };
        let (original_dst, actual_dst) = (Some(flow.original.to_string()), to(flow, route));
        self.ctx.connections().outbound(Connection { src: flow.source, original_dst, actual_dst, protocol })
    }

    /// What is asked of the far end of a tunnel.
    pub(super) fn head(&self, flow: &Flow, authority: Authority) -> Head {
        let host = self.destination.service.as_ref().map(|service| service.hostname.to_string());
        Head {
            baggage: Some(baggage::for_workload(&self.workload)),
            forwarded: Some(Forwarded { client: Some(flow.source), host }.to_string()),
            traceparent: Some(TraceParent::random().to_string()),
            ..Head::new(authority)
        }
    }

    /// Opens a stream in a pooled tunnel, which is dialled when there is none.
    pub(super) async fn open(
        &self,
        flow: &Flow,
        upstream: &Upstream,
        head: &Head,
    ) -> Result<(Stream, ResponseHead), Error> {
        let key = PoolKey {
            source: self.workload.identity(),
            destinations: upstream.identities.clone(),
            address: upstream.tcp_to,
            source_ip: flow.source.ip(),
        };
        let dialer = Dialer(self.ctx);
        let opened = Box::pin(self.ctx.pool().open(&key, head, &dialer));
        let Opened { stream, response, .. } = self.in_time(opened).await??;
        Ok((stream, response))
    }

    /// The far end may be dialling, and so may the one behind it, but not for ever.
    pub(super) async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let deadline: Duration = self.ctx.proxy().config.answer_deadline;
        tokio::time::timeout(deadline, answer).await.map_err(|_| Error::NoAnswer(deadline))
    }

    pub(super) fn identity(&self) -> SpiffeId {
        self.workload.identity()
    }
}

fn upstream(route: &Route) -> Option<&Upstream> {
    match route {
        Route::Tcp(upstream) | Route::Hbone(upstream) | Route::DoubleHbone(upstream) => Some(upstream),
        Route::Passthrough { .. } | Route::Deny(_) => None,
    }
}

fn is_plain(route: &Route) -> bool {
    matches!(route, Route::Tcp(_) | Route::Passthrough { .. })
}

/// Where TCP connects to.
fn to(flow: &Flow, route: &Route) -> SocketAddr {
    upstream(route).map_or(flow.original, |upstream| upstream.tcp_to)
}
