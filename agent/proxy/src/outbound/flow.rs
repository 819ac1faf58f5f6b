//! One outbound connection and its attempt: what telemetry, the table of connections and the CONNECT say of it, however
//! it is carried.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isthmus_hbone::forwarded::Forwarded;
use isthmus_hbone::pool::Opened;
use isthmus_hbone::trace::TraceParent;
use isthmus_hbone::{Head, ResponseHead, Stream};
use isthmus_model::{Authority, Workload};
use isthmus_state::route::{Destination, Route, TunnelTarget};
use tokio::net::TcpStream;

use crate::context::PodContext;
use crate::dial::Dialer;
use crate::error::Error;
use crate::retry::Protection;
use crate::telemetry::baggage;
use crate::telemetry::{EndpointInfo, Opening, Record, ServiceLabels};
use crate::tracker::{Connection, Tracked};
use crate::types::{Carrier, Direction, PoolKey};

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) stream: TcpStream,
    pub(crate) source: SocketAddr,
    /// The original destination.
    pub(crate) original: SocketAddr,
    /// Bytes that were read from the client already; they go to the upstream first.
    pub(crate) first: Bytes,
}

/// One attempt to connect a client to an upstream.
pub(super) struct OutboundAttempt<'a> {
    pub(super) ctx: &'a PodContext,
    pub(super) flow: &'a Flow,
    /// The client.
    pub(super) workload: Arc<Workload>,
    pub(super) route: Route,
    pub(super) protection: Protection,
    pub(super) destination: Destination,
}

impl OutboundAttempt<'_> {
    /// Starts the record of the connection.
    pub(super) fn record(&self) -> Record {
        let hbone = self.route.authority().cloned();
        let mutual_tls = hbone.is_some();
        let Destination { workload, service } = &self.destination;
        let expected = workload.as_deref().map(Workload::identity);
        let opening = Opening {
            reporter: self.ctx.reporter(),
            direction: Direction::Outbound,
            src: self.flow.source,
            source: EndpointInfo::new(Some(&self.workload), mutual_tls.then(|| self.workload.identity())),
            dst: self.route.addr(),
            hbone,
            service: service.as_deref().map(ServiceLabels::of),
            destination: EndpointInfo::new(workload.as_deref(), expected),
            mutual_tls,
        };
        Record::new(Arc::clone(&self.ctx.proxy().metrics), opening).logged_on_drop()
    }

    /// Enters the connection into the pod's table.
    pub(super) fn track(&self) -> Tracked {
        let protocol = match &self.route {
            Route::Hbone(_) => Carrier::Hbone,
            Route::DoubleHbone(_) => Carrier::DoubleHbone,
            Route::Tcp(_) | Route::Passthrough { .. } => Carrier::Tcp,
        };
        let (original_dst, actual_dst) = (Some(self.flow.original.to_string()), self.route.addr());
        let src = self.flow.source;
        self.ctx.connections().outbound(Connection { src, original_dst, actual_dst, protocol })
    }

    /// The headers of the CONNECT.
    pub(super) fn head(&self, authority: Authority) -> Head {
        let host = self.destination.service.as_ref().map(|service| service.hostname.to_string());
        Head {
            baggage: Some(baggage::for_workload(&self.workload)),
            forwarded: Some(Forwarded { client: Some(self.flow.source), host }.to_string()),
            traceparent: Some(TraceParent::random().to_string()),
            ..Head::new(authority)
        }
    }

    /// Opens a stream in a pooled tunnel, which is dialled when there is none.
    pub(super) async fn open(
        &self,
        target: &TunnelTarget,
        head: &Head,
    ) -> Result<(Stream, ResponseHead), Error> {
        let key = PoolKey {
            source: self.workload.identity(),
            destinations: target.identities.as_slice().to_vec(),
            address: target.addr,
            source_ip: self.flow.source.ip(),
        };
        let dialer = Dialer(self.ctx);
        let opened = Box::pin(self.ctx.pool().open(&key, head, &dialer));
        let Opened { stream, response, .. } = self.in_time(opened).await??;
        Ok((stream, response))
    }

    /// Limits how long the peer may take to answer a CONNECT. It may be dialling itself, and so may the peer behind it.
    pub(super) async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Error> {
        let deadline: Duration = self.ctx.proxy().config.answer_deadline;
        tokio::time::timeout(deadline, answer).await.map_err(|_| Error::NoAnswer(deadline))
    }
}
