//! 15001: a captured connection of the pod, from its original destination to the other end. Never falls back from HBONE
//! to plaintext, and sends no byte of the application before the far end said yes.

use super::attempt::UpstreamConn;
use super::connect::{Failed, Open, connect};
use super::flow::Flow;
use std::sync::Arc;

use bytes::Bytes;
use isthmus_hbone::copy::{self, ByteCounter as _};
use isthmus_rt::drain::Watch;
use isthmus_sys::socket::reset_on_close;
use tokio::io::AsyncWriteExt as _;

use crate::accept::Accepted;
use crate::context::PodContext;
use crate::error::Error;
use crate::telemetry::access_log;
use crate::telemetry::{Record, Traffic};
use crate::types::{Direction, Reporter};

/// Serves one captured connection to its end.
pub(crate) async fn serve(ctx: Arc<PodContext>, accepted: Accepted, drain: Watch) {
    let _open = ctx.proxy().metrics.socket(Reporter::Source);
    ctx.sockets().accepted(&accepted.stream);
    let flow = Flow {
        stream: accepted.stream,
        source: accepted.source,
        original: accepted.original,
        first: Bytes::new(),
    };
    tokio::select! {
        biased;
        // What was begun logs its end when it is dropped.
        () = drain.forced() => {}
        () = forward(&ctx, flow) => {}
    }
}

/// Sends one connection where the mesh's state says, and logs how it ended.
pub(crate) async fn forward(ctx: &PodContext, flow: Flow) {
    // Boxed so that a connection which only copies does not carry the room that its beginning needed.
    match Box::pin(connect(ctx, &flow)).await {
        Ok(open) => carry(flow, open).await,
        Err(failed) => {
            // The client must see that it was cut, not that an empty answer was finished.
            reset_on_close(&flow.stream);
            match failed {
                Failed::Early(error) => {
                    access_log::early(flow.source, flow.original, Direction::Outbound, &error);
                }
                Failed::Late(record, error) => record.fail(&error),
            }
        }
    }
}

/// Copies between the client and the far end.
async fn carry(flow: Flow, open: Open) {
    let Open { mut record, tracked, far } = open;
    let traffic = record.open();
    match far {
        UpstreamConn::Tcp(mut upstream) => match upstream.write_all(&flow.first).await {
            Ok(()) => {
                traffic.sent(flow.first.len() as u64);
                record.finish(copy::plain(flow.stream, upstream, &traffic).await);
            }
            Err(error) => lost(&flow, record, error),
        },
        UpstreamConn::Tunnel(stream, inner) => {
            tunnel(flow, stream, record, &traffic).await;
            if let Some(inner) = inner {
                inner.close_gracefully();
            }
        }
    }
    drop(tracked);
}

async fn tunnel(flow: Flow, mut stream: isthmus_hbone::Stream, record: Record, traffic: &Traffic) {
    let length = flow.first.len() as u64;
    if length > 0 {
        if let Err(error) = stream.send(flow.first.clone()).await {
            return lost(&flow, record, error.into());
        }
        traffic.sent(length);
    }
    record.finish(copy::tunnel(flow.stream, stream, traffic).await);
}

/// The far end was lost before the first bytes were with it; they are on the way, so nobody else gets them.
fn lost(flow: &Flow, record: Record, error: std::io::Error) {
    reset_on_close(&flow.stream);
    record.fail(&Error::Preface(error));
}
