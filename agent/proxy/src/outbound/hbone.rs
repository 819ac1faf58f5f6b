//! A connection that goes through one tunnel.

use isthmus_hbone::Stream;
use isthmus_hbone::copy::{self, Count as _};
use isthmus_state::route::Upstream;
use isthmus_sys::socket::reset_on_close;

use super::flow::{Flow, Way};
use crate::conns::Carrier;
use crate::error::Error;
use crate::record::{Record, Traffic};

pub(super) async fn send(way: &Way<'_>, flow: Flow, upstream: &Upstream) {
    let mut record = way.record(&flow, upstream.tcp_to, Some(upstream.authority.clone()));
    let traffic = record.open();
    let _tracked = way.track(&flow, upstream.tcp_to, Carrier::Hbone);
    let head = way.head(&flow, upstream.authority.clone());
    match way.open(&flow, upstream, &head).await {
        Ok((stream, _)) => carry(flow, stream, record, &traffic).await,
        Err(error) => refuse(&flow, record, &error),
    }
}

/// Copies between the client and an accepted stream.
pub(super) async fn carry(flow: Flow, mut stream: Stream, record: Record, traffic: &Traffic) {
    let length = flow.first.len() as u64;
    if length > 0 {
        if let Err(error) = stream.send(flow.first.clone()).await {
            return refuse(&flow, record, &Error::Preface(error.into()));
        }
        traffic.sent(length);
    }
    record.finish(copy::tunnel(flow.stream, stream, traffic).await);
}

/// The client must see that it was cut, not that an empty answer was finished.
pub(super) fn refuse(flow: &Flow, record: Record, error: &Error) {
    reset_on_close(&flow.stream);
    record.fail(error);
}
