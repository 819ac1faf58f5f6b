//! A copy that stops because its tunnel is taken apart, and one that goes on from there.

use std::io;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::TcpStream;

use super::{Copy, ToStream};
use crate::byte_counter::ByteCounter;
use crate::copy::outcome::{CopyOutcome, Side};
use crate::error::{StreamError, TunnelError};
use crate::tunnel::{CopyParts, Sink, StoppedCopy, StreamRef, TunnelState};

impl Copy {
    /// Leaves the application's connection and the counts to the tunnel. Nothing is closed when the copy is dropped.
    pub(super) fn stop(&mut self, state: &mut TunnelState) -> CopyOutcome {
        let sink = state.stream(self.place.id).and_then(|stream| stream.sink.take());
        let (received, write_error) = sink.map_or((self.received, None), |sink| (sink.written, sink.error));
        let Self { tcp, over, place, counter: _, to_stream, received: _, to_app_done, closed_by } = self;
        let ToStream { bytes, slots, done, refused } = to_stream;
        let stopped = StoppedCopy {
            tcp: Arc::clone(tcp),
            sent: *bytes,
            received,
            slots: *slots,
            send_done: *done,
            refused: refused.take(),
            receive_done: *to_app_done,
            closed_by: *closed_by,
            write_error,
            released: false,
        };
        state.leave_copy(place.id, stopped);
        *over = true;
        let error = Some(StreamError::Lost(TunnelError::HandedOver).into());
        CopyOutcome { sent: *bytes, received, closed_by: closed_by.unwrap_or(Side::Remote), error }
    }

    /// Goes on with a connection that was copied before.
    pub(in crate::copy) fn resumed(
        stream: StreamRef,
        parts: CopyParts,
        counter: Arc<dyn ByteCounter>,
    ) -> io::Result<Self> {
        let CopyParts {
            app,
            sent,
            received,
            slots,
            send_done,
            refused,
            receive_done,
            closed_by,
            write_error,
        } = parts;
        let tcp = app.take().ok_or(io::ErrorKind::NotConnected)?;
        // While it travelled, a lost socket was to be reset.
        SockRef::from(&tcp).set_linger(None)?;
        let tcp = Arc::new(TcpStream::from_std(tcp)?);
        if let Some(known) = stream.core.lock().stream(stream.id).filter(|stream| !stream.discards) {
            let (tcp, counter) = (Arc::clone(&tcp), Arc::clone(&counter));
            known.sink = Some(Sink { tcp, counter, written: received, error: write_error });
        }
        stream.core.lock().copy_started();
        let to_stream = ToStream { bytes: sent, slots, done: send_done, refused };
        Ok(Self {
            tcp,
            over: false,
            place: Arc::new(stream),
            counter,
            to_stream,
            received,
            to_app_done: receive_done,
            closed_by,
        })
    }
}
