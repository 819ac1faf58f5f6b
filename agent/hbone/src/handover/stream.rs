//! A stream with its copy between values and messages.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use isthmus_proto::handover as proto;
use prost::Message as _;

use super::wire::{
    DecodeError, EncodeError, Item, MAX_BYTES, MAX_U31, VERSION, at_most, end, end_from, failure_from,
    micros, wipe,
};
use crate::copy::Side;
use crate::tunnel::{AppSocket, CopyParts, MAX_SLOTS, StreamParts, WindowUseParts};

/// What is left of the errors of a socket that are none of the system.
const EIO: i32 = 5;

pub(super) fn encode(parts: &StreamParts) -> Result<proto::Stream, EncodeError> {
    let StreamParts { id, queue, end: ended, lost, unprocessed, window, grown, finished, discards, copy } =
        parts;
    let WindowUseParts { taken, since } = window;
    Ok(proto::Stream {
        version: VERSION,
        id: *id,
        queue: queue.concat(),
        end: ended.as_ref().map(|ended| end(ended.as_ref().err())).transpose()?,
        lost: lost.as_ref().map(|lost| end(Some(lost))).transpose()?,
        unprocessed: *unprocessed,
        window_taken: *taken,
        window_since: since.map(micros),
        grown: *grown,
        finished: *finished,
        discards: *discards,
        copy: copy.as_ref().map(encode_copy).transpose()?,
    })
}

fn encode_copy(parts: &CopyParts) -> Result<proto::Copy, EncodeError> {
    use proto::copy::ClosedBy;
    let CopyParts { app: _, sent, received, slots, send_done, refused, receive_done, closed_by, write_error } =
        parts;
    let closed_by = match closed_by {
        None => ClosedBy::Neither,
        Some(Side::Local) => ClosedBy::Local,
        Some(Side::Remote) => ClosedBy::Remote,
    };
    Ok(proto::Copy {
        sent: *sent,
        received: *received,
        slots: u32::try_from(*slots).unwrap_or(1),
        send_done: *send_done,
        refused: refused.as_ref().map(|refused| end(Some(refused))).transpose()?,
        receive_done: *receive_done,
        closed_by: closed_by.into(),
        write_error: write_error.as_ref().map(|error| error.raw_os_error().unwrap_or(EIO)),
    })
}

pub(super) fn decode(item: Item) -> Result<StreamParts, DecodeError> {
    let proto::Stream {
        version: _,
        id,
        queue,
        end,
        lost,
        unprocessed,
        window_taken,
        window_since,
        grown,
        finished,
        discards,
        copy,
    } = proto::Stream::decode(item.bytes.as_slice())?;
    wipe(item.bytes);
    let copy = match (copy, item.socket) {
        (Some(copy), Some(socket)) => Some(decode_copy(copy, socket)?),
        (None, None) => None,
        _ => return Err(DecodeError::Field("socket of a stream")),
    };
    let window = WindowUseParts {
        taken: at_most(window_taken, MAX_BYTES, "window")?,
        since: window_since.map(Duration::from_micros),
    };
    Ok(StreamParts {
        id,
        queue: if queue.is_empty() { Vec::new() } else { vec![Bytes::from(queue)] },
        end: end.map(end_from).transpose()?.map(|end| end.map_or(Ok(()), Err)),
        lost: lost.map(failure_from).transpose()?,
        unprocessed,
        window,
        grown: at_most(grown, MAX_U31, "window")?,
        finished,
        discards,
        copy,
    })
}

fn decode_copy(message: proto::Copy, socket: OwnedFd) -> Result<CopyParts, DecodeError> {
    use proto::copy::ClosedBy;
    let app = AppSocket::received(TcpStream::from(socket));
    let proto::Copy { sent, received, slots, send_done, refused, receive_done, closed_by, write_error } =
        message;
    let slots = usize::try_from(slots).ok().filter(|slots| (1..=MAX_SLOTS).contains(slots));
    let closed_by = match ClosedBy::try_from(closed_by) {
        Ok(ClosedBy::Neither) => None,
        Ok(ClosedBy::Local) => Some(Side::Local),
        Ok(ClosedBy::Remote) => Some(Side::Remote),
        Err(_) => return Err(DecodeError::Field("side that closed")),
    };
    Ok(CopyParts {
        app,
        sent: at_most(sent, MAX_BYTES, "bytes sent")?,
        received: at_most(received, MAX_BYTES, "bytes received")?,
        slots: slots.ok_or(DecodeError::Field("slots"))?,
        send_done,
        refused: refused.map(failure_from).transpose()?,
        receive_done,
        closed_by,
        write_error: write_error.map(io::Error::from_raw_os_error),
    })
}
