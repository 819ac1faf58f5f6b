//! A copy between two connections, between values and items: one for each connection.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use isthmus_proto::handover as proto;
use prost::Message as _;

use super::wire::{DecodeError, EncodeError, Item, MAX_BUFFERED, MAX_BYTES, VERSION, at_most, bounded};
use crate::copy::{DirectionParts, PlainParts, Side};
use crate::tunnel::AppSocket;

/// Encodes a copy that has stopped. Its sockets are reset if they are lost on the way; [`decode_plain`] gives the parts back.
///
/// # Errors
/// When more is buffered than an item holds, which the copy never does: the connections are reset.
pub fn encode_plain(parts: PlainParts) -> Result<[Item; 2], EncodeError> {
    let PlainParts { local, remote, to_remote, to_local, closed_by } = parts;
    if to_remote.unwritten.len() > MAX_BUFFERED || to_local.unwritten.len() > MAX_BUFFERED {
        return Err(EncodeError::Field("buffers"));
    }
    let item = |socket: AppSocket, direction: &DirectionParts, closed: bool| {
        let socket = socket.take().map(|tcp| {
            // If this process ends before the socket has arrived, its end must not look proper.
            let _ = socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
            OwnedFd::from(tcp)
        });
        let DirectionParts { unwritten, read_error, bytes, eof, done, refused } = direction;
        let message = proto::Plain {
            version: VERSION,
            unwritten: unwritten.to_vec(),
            read_error: *read_error,
            bytes: *bytes,
            eof: *eof,
            done: *done,
            refused: *refused,
            closed_first: closed,
        };
        Item { bytes: message.encode_to_vec().into(), socket }
    };
    Ok([
        item(local, &to_remote, closed_by == Some(Side::Local)),
        item(remote, &to_local, closed_by == Some(Side::Remote)),
    ])
}

/// Decodes what [`encode_plain`] made.
///
/// # Errors
/// When the version is another one, or anything is missing, too long or out of its range. The sockets are closed, which
/// resets them unless the sender holds them, too.
pub fn decode_plain(items: Vec<Item>) -> Result<PlainParts, DecodeError> {
    let found = items.len();
    let [local, remote] =
        <[Item; 2]>::try_from(items).map_err(|_| DecodeError::Items { expected: 2, found })?;
    let (local, to_remote, local_first) = side(local)?;
    let (remote, to_local, remote_first) = side(remote)?;
    let closed_by = match (local_first, remote_first) {
        (false, false) => None,
        (true, false) => Some(Side::Local),
        (false, true) => Some(Side::Remote),
        (true, true) => return Err(DecodeError::Field("side that closed")),
    };
    Ok(PlainParts { local, remote, to_remote, to_local, closed_by })
}

fn side(item: Item) -> Result<(AppSocket, DirectionParts, bool), DecodeError> {
    let version = proto::Versioned::decode(item.bytes.as_slice())?.version;
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    let proto::Plain { version: _, unwritten, read_error, bytes, eof, done, refused, closed_first } =
        proto::Plain::decode(item.bytes.as_slice())?;
    let socket = item.socket.ok_or(DecodeError::Field("socket"))?;
    let direction = DirectionParts {
        unwritten: Bytes::from(bounded(unwritten, MAX_BUFFERED, "unwritten bytes")?),
        read_error,
        bytes: at_most(bytes, MAX_BYTES, "bytes")?,
        eof,
        done,
        refused,
    };
    Ok((AppSocket::received(TcpStream::from(socket)), direction, closed_first))
}
