//! The life of a captured connection behind the accept: connect, send what was read already, copy until an end closes,
//! log.

use std::sync::Arc;

use bytes::Bytes;
use isthmus_hbone::copy::{self, ByteCounter as _, PlainParts};
use isthmus_hbone::handover::ResumedCopy;
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::reset_on_close;
use tokio::io::AsyncWriteExt as _;

use super::attempt::UpstreamConn;
use super::connect::connect;
use super::flow::Flow;
use super::retry_loop::{Connected, Failed};
use crate::accept::Accepted;
use crate::context::PodContext;
use crate::error::Error;
use crate::telemetry::access_log;
use crate::telemetry::{Record, Traffic};
use crate::tracker::Tracked;
use crate::types::{Direction, Reporter};

/// Serves one captured connection to its end.
pub(crate) async fn serve(ctx: Arc<PodContext>, accepted: Accepted, drain: Watch) {
    let _open = ctx.proxy().metrics.count_socket(Reporter::Source);
    let flow = Flow {
        stream: accepted.stream,
        source: accepted.source,
        original: accepted.original,
        first: Bytes::new(),
    };
    tokio::select! {
        biased;
        // A record that was started logs the end of its connection when it is dropped.
        () = drain.forced() => {}
        () = forward(&ctx, flow) => {}
    }
}

/// Connects one client to its upstream, copies, and logs how the connection ended.
pub(crate) async fn forward(ctx: &PodContext, flow: Flow) {
    // Boxed so that a connection that only copies does not keep the memory that connecting needed.
    match Box::pin(connect(ctx, &flow)).await {
        Ok(connected) => carry(ctx, flow, connected).await,
        Err(failed) => {
            // A FIN would look like an empty answer; a reset tells the client that the connection failed.
            reset_on_close(&flow.stream);
            match failed {
                Failed::BeforeAttempt(error) => {
                    access_log::failed(
                        &ctx.proxy().metrics,
                        (flow.source, flow.original),
                        Direction::Outbound,
                        &error,
                    );
                }
                Failed::Attempt(record, error) => record.fail(&error),
            }
        }
    }
}

/// Copies between the client and the upstream.
async fn carry(ctx: &PodContext, flow: Flow, connected: Connected<UpstreamConn>) {
    let Connected { mut record, tracked, upstream } = connected;
    let traffic = record.open();
    match upstream {
        UpstreamConn::Tcp(mut upstream, _descriptor) => match upstream.write_all(&flow.first).await {
            Ok(()) => {
                traffic.sent(flow.first.len() as u64);
                let pair = ctx.open_tunnels().register_pair(false);
                let ended = copy::plain(flow.stream, upstream, &traffic, pair.control()).await;
                ctx.finish_pair(&pair, record, tracked, ended);
            }
            Err(error) => fail(&flow, record, error),
        },
        UpstreamConn::Tunnel(stream, inner) => {
            tunnel(ctx, flow, stream, (record, tracked), traffic).await;
            if let Some(inner) = inner {
                inner.close_gracefully();
            }
        }
    }
}

async fn tunnel(
    ctx: &PodContext,
    flow: Flow,
    mut stream: isthmus_hbone::Stream,
    (record, tracked): (Record, Tracked),
    traffic: Traffic,
) {
    let length = flow.first.len() as u64;
    if length > 0 {
        if let Err(error) = stream.send(&flow.first).await {
            return fail(&flow, record, error.into());
        }
        traffic.sent(length);
    }
    let at = (stream.tunnel(), stream.id());
    let ended = copy::tunnel(flow.stream, stream, Arc::new(traffic)).await;
    ctx.finish(at, record, tracked, ended);
}

/// Goes on with a connection without a tunnel that another process had connected, until its end.
pub(crate) async fn resume_plain(
    ctx: Arc<PodContext>,
    parts: PlainParts,
    mut record: Record,
    tracked: Tracked,
    drain: Watch,
) {
    let _open = ctx.proxy().metrics.count_socket(Reporter::Source);
    let traffic = record.open();
    let pair = ctx.open_tunnels().register_pair(false);
    tokio::select! {
        biased;
        // As in `serve`.
        () = drain.forced() => {}
        ended = copy::resume_plain(parts, &traffic, pair.control()) => match ended {
            Ok(ended) => ctx.finish_pair(&pair, record, tracked, ended),
            Err(error) => record.fail(&Error::NotResumed(error.into())),
        },
    }
}

/// Goes on with a connection that another process had connected, until its end.
pub(crate) async fn resume(
    ctx: Arc<PodContext>,
    copy: ResumedCopy,
    mut record: Record,
    tracked: Tracked,
    drain: Watch,
) {
    let _open = ctx.proxy().metrics.count_socket(Reporter::Source);
    let traffic = record.open();
    let at = (copy.tunnel(), copy.stream());
    tokio::select! {
        biased;
        // As in `serve`.
        () = drain.forced() => {}
        ended = copy.run(Arc::new(traffic)) => match ended {
            Ok(ended) => ctx.finish(at, record, tracked, ended),
            Err(error) => record.fail(&Error::NotResumed(error)),
        },
    }
}

/// The upstream was lost before it had the first bytes. Some may have arrived, so the connection cannot be retried.
fn fail(flow: &Flow, record: Record, error: std::io::Error) {
    reset_on_close(&flow.stream);
    record.fail(&Error::Preface(error));
}
