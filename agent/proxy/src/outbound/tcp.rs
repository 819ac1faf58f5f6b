//! A connection that leaves as it came: the other end is not in the mesh.

use std::net::SocketAddr;

use isthmus_hbone::copy::{self, Count as _};
use isthmus_sys::socket::reset_on_close;
use tokio::io::AsyncWriteExt as _;

use super::flow::{Flow, Way};
use crate::conns::Carrier;
use crate::error::Error;

pub(super) async fn send(way: &Way<'_>, flow: Flow, to: SocketAddr) {
    let mut record = way.record(&flow, to, None);
    let traffic = record.open();
    let _tracked = way.track(&flow, to, Carrier::Tcp);
    let connected = way.scope.sockets().connect(to, None, way.scope.world().config.dial_deadline).await;
    let first = match connected {
        Ok(mut upstream) => match upstream.write_all(&flow.first).await {
            Ok(()) => Ok(upstream),
            Err(error) => Err(Error::Preface(error)),
        },
        Err(error) => Err(Error::Connect(error)),
    };
    match first {
        Ok(upstream) => {
            traffic.sent(flow.first.len() as u64);
            record.finish(copy::plain(flow.stream, upstream, &traffic).await);
        }
        Err(error) => {
            reset_on_close(&flow.stream);
            record.fail(&error);
        }
    }
}
