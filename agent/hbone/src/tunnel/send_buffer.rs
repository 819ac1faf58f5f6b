//! What a tunnel has to write: records, sealed in place, in the order of their frames.
//!
//! ```text
//! [5 header][frame][frame]...[1 type][16 tag]   TLS; without it the frames alone
//! ```
//!
//! The last record is left open for more frames until it is full or written, so that small messages of many streams share
//! a record and a system call. Must not know streams' states or sockets.

mod parts;

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use isthmus_http2::{Connection, HEADER_LEN as FRAME_HEADER, StreamId};
use isthmus_record::{Alert, HEADER_LEN, MAX_PAYLOAD, OVERHEAD, Sealer};
use tokio::io::AsyncWrite;

use super::chunk::{self, Size};

pub(super) use parts::SendBufferParts;

/// Frames that one read of an application fills at most: 256 KiB.
pub(super) const MAX_SLOTS: usize = 16;
/// An open record with less room than this is closed rather than read into.
const MIN_ROOM: usize = 2 * 1024;
/// Buffers that one system call writes.
const GATHER: usize = 16;

/// Records that wait to be written.
#[derive(Debug)]
pub(super) struct SendBuffer {
    sealer: Option<Sealer>,
    chunks: VecDeque<Chunk>,
    /// Where the open record begins in the last chunk.
    open: Option<usize>,
    unwritten: usize,
    /// The peer asked for a KeyUpdate, or our key is worn: it comes before the next record.
    owes_key_update: bool,
    /// A close_notify or an alert is the last record.
    closed: bool,
}

#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    written: usize,
    filled: usize,
}

/// A record that is sealed at once.
type Sealed = isthmus_record::Result<Vec<u8>>;

/// The bytes of a record around its frames.
#[derive(Debug, Clone, Copy)]
struct Frame {
    head: usize,
    overhead: usize,
}

const PLAIN: Frame = Frame { head: 0, overhead: 0 };
const TLS: Frame = Frame { head: HEADER_LEN, overhead: OVERHEAD };

// === impl SendBuffer ===

impl SendBuffer {
    pub(super) fn new(sealer: Option<Sealer>) -> Self {
        Self {
            sealer,
            chunks: VecDeque::new(),
            open: None,
            unwritten: 0,
            owes_key_update: false,
            closed: false,
        }
    }

    /// Bytes that were not written yet.
    pub(super) fn len(&self) -> usize {
        self.unwritten
    }

    /// Memory of the buffers that hold them.
    pub(super) fn allocated(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum()
    }

    fn record(&self) -> Frame {
        if self.sealer.is_some() { TLS } else { PLAIN }
    }

    /// Room for frames in the open record; 0 without one.
    fn room(&self) -> usize {
        match (self.open, self.chunks.back()) {
            (Some(start), Some(chunk)) => {
                (start + self.record().head + MAX_PAYLOAD).saturating_sub(chunk.filled)
            }
            _ => 0,
        }
    }

    /// Copies complete frames.
    pub(super) fn push_frames(&mut self, mut frames: &[u8]) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        self.update_key_if_due()?;
        while !frames.is_empty() {
            let room = self.ensure_open(1)?;
            let (now, later) = frames.split_at(room.min(frames.len()));
            self.append(now);
            frames = later;
        }
        Ok(())
    }

    /// Copies bytes of a stream, for which there is credit, as DATA frames.
    pub(super) fn push_data(
        &mut self,
        http2: &mut Connection,
        stream: StreamId,
        mut data: &[u8],
    ) -> io::Result<()> {
        self.start(http2)?;
        while !data.is_empty() {
            let room = self.ensure_open(FRAME_HEADER + MIN_ROOM.min(data.len()))? - FRAME_HEADER;
            let (now, later) = data.split_at(room.min(data.len()));
            let header = http2.data_header(stream, now.len(), false).map_err(io::Error::other)?;
            self.append(&header);
            self.append(now);
            data = later;
        }
        Ok(())
    }

    /// Before bytes of a stream are put into records: nothing may come between them later.
    fn start(&mut self, http2: &mut Connection) -> io::Result<()> {
        if self.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.push_output(http2)?;
        self.update_key_if_due()
    }

    /// Takes the frames that the connection has queued: heads come before the DATA that follows.
    pub(super) fn push_output(&mut self, http2: &mut Connection) -> io::Result<()> {
        let output = http2.output();
        let length = output.len();
        if length > 0 {
            self.push_frames(output)?;
            http2.consumed(length);
        }
        Ok(())
    }

    /// Reads bytes of a stream from its application straight into DATA frames of up to `slots` records, at most `limit`
    /// bytes, for which there must be credit. Returns what `read` returns.
    pub(super) fn read_frames(
        &mut self,
        http2: &mut Connection,
        stream: StreamId,
        (slots, limit): (usize, usize),
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.start(http2)?;
        if slots > 1 {
            self.seal_open()?;
            self.ensure_chunk(Size::Large)?;
        }
        let first = self.ensure_open(FRAME_HEADER + MIN_ROOM)? - FRAME_HEADER;
        let record = self.record();
        let Some(chunk) = self.chunks.back_mut() else { return Err(io::ErrorKind::Other.into()) };
        let payloads = layout(chunk.bytes.len() - chunk.filled, record, first, (slots, limit));
        let mut slices: [IoSliceMut<'_>; MAX_SLOTS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut rest = &mut chunk.bytes[chunk.filled..];
        for (at, (slice, length)) in
            slices.iter_mut().zip(&payloads).enumerate().filter(|(_, (_, l))| **l > 0)
        {
            let gap = if at == 0 { FRAME_HEADER } else { record.overhead + FRAME_HEADER };
            let (_, after) = rest.split_at_mut(gap);
            let (payload, after) = after.split_at_mut(*length);
            *slice = IoSliceMut::new(payload);
            rest = after;
        }
        let used = payloads.iter().filter(|length| **length > 0).count();
        let count = match read(&mut slices[..used]) {
            Ok(count) => count,
            Err(error) => {
                self.drop_empty();
                return Err(error);
            }
        };
        let mut left = count;
        for length in payloads {
            if left == 0 {
                break;
            }
            let now = left.min(length);
            self.ensure_open(FRAME_HEADER + 1)?;
            let header = http2.data_header(stream, now, false).map_err(io::Error::other)?;
            self.append(&header);
            self.advance(now);
            left -= now;
            if left > 0 {
                self.seal_open()?;
            }
        }
        self.drop_empty();
        Ok(count)
    }

    /// The peer asked for a KeyUpdate. One answers any number of requests.
    pub(super) fn owe_key_update(&mut self) {
        self.owes_key_update = true;
    }

    fn update_key_if_due(&mut self) -> io::Result<()> {
        let is_worn = self.sealer.as_ref().is_some_and(Sealer::needs_key_update);
        if self.closed || !(is_worn || self.owes_key_update) {
            return Ok(());
        }
        self.owes_key_update = false;
        self.append_control(|sealer| sealer.key_update(false).map(Vec::from))
    }

    /// Seals a close_notify: nothing follows.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.finish(|sealer| sealer.close_notify().map(Vec::from))
    }

    /// Seals an alert: nothing follows.
    pub(super) fn alert(&mut self, alert: Alert) -> io::Result<()> {
        self.finish(|sealer| sealer.alert(alert).map(Vec::from))
    }

    fn finish(&mut self, record: impl FnOnce(&mut Sealer) -> Sealed) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let appended = self.append_control(record);
        self.closed = true;
        appended
    }

    /// Appends a record that is sealed at once.
    fn append_control(&mut self, record: impl FnOnce(&mut Sealer) -> Sealed) -> io::Result<()> {
        self.seal_open()?;
        let Some(sealer) = &mut self.sealer else { return Ok(()) };
        let record = record(sealer).map_err(io::Error::other)?;
        self.ensure_chunk(Size::Small)?;
        self.append(&record);
        Ok(())
    }

    /// Writes until everything is written or the transport takes no more.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        io: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        self.update_key_if_due()?;
        self.seal_open()?;
        while self.unwritten > 0 {
            let written = if self.chunks.len() == 1 {
                let chunk = &self.chunks[0];
                ready!(Pin::new(&mut *io).poll_write(cx, &chunk.bytes[chunk.written..chunk.filled]))?
            } else {
                let mut slices = [IoSlice::new(&[]); GATHER];
                let mut count = 0;
                for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                    *slice = IoSlice::new(&chunk.bytes[chunk.written..chunk.filled]);
                    count += 1;
                }
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written(written);
        }
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, mut count: usize) {
        self.unwritten -= count;
        while let Some(chunk) = self.chunks.front_mut() {
            let now = count.min(chunk.filled - chunk.written);
            chunk.written += now;
            count -= now;
            if chunk.written < chunk.filled {
                return;
            }
            if let Some(chunk) = self.chunks.pop_front() {
                chunk::give_back(chunk.bytes);
            }
        }
    }

    /// Makes sure that there is an open record with this much room; returns its room.
    fn ensure_open(&mut self, least: usize) -> io::Result<usize> {
        if self.open.is_some() && self.room() >= least {
            return Ok(self.room());
        }
        self.seal_open()?;
        self.ensure_chunk(Size::Small)?;
        let record = self.record();
        let Some(chunk) = self.chunks.back_mut() else { return Err(io::ErrorKind::Other.into()) };
        self.open = Some(chunk.filled);
        chunk.filled += record.head;
        self.unwritten += record.head;
        Ok(MAX_PAYLOAD)
    }

    /// Makes sure that a full record fits into the last chunk.
    fn ensure_chunk(&mut self, size: Size) -> io::Result<()> {
        let fits = self.chunks.back().is_some_and(|chunk| {
            let room = chunk.bytes.len() - chunk.filled;
            room >= MAX_PAYLOAD + OVERHEAD && (size == Size::Small || room >= chunk::LARGE / 2)
        });
        if !fits {
            // What does not fit into one buffer for messages is bulk.
            let size = if self.unwritten > 0 { Size::Large } else { size };
            self.seal_open()?;
            self.chunks.push_back(Chunk { bytes: chunk::take(size), written: 0, filled: 0 });
        }
        Ok(())
    }

    /// Seals the open record, if it holds a frame.
    fn seal_open(&mut self) -> io::Result<()> {
        self.drop_empty_record();
        let Some(start) = self.open.take() else { return Ok(()) };
        let Some(sealer) = &mut self.sealer else { return Ok(()) };
        let Some(chunk) = self.chunks.back_mut() else { return Ok(()) };
        let trailer = OVERHEAD - HEADER_LEN;
        let end = chunk.filled + trailer;
        if let Err(error) = sealer.seal(&mut chunk.bytes[start..end]) {
            // It must not be written as it is.
            self.unwritten -= chunk.filled - start;
            chunk.filled = start;
            return Err(io::Error::other(error));
        }
        chunk.filled = end;
        self.unwritten += trailer;
        Ok(())
    }

    /// Takes back a record that was opened for nothing.
    fn drop_empty_record(&mut self) {
        let head = self.record().head;
        let Some(chunk) = self.chunks.back_mut() else { return };
        if self.open.is_some_and(|start| start + head == chunk.filled) {
            self.open = None;
            chunk.filled -= head;
            self.unwritten -= head;
        }
    }

    /// The same, and a buffer without a record.
    fn drop_empty(&mut self) {
        self.drop_empty_record();
        let is_empty = self.open.is_none() && self.chunks.back().is_some_and(|chunk| chunk.filled == 0);
        if is_empty && let Some(chunk) = self.chunks.pop_back() {
            chunk::give_back(chunk.bytes);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.bytes[chunk.filled..chunk.filled + bytes.len()].copy_from_slice(bytes);
        }
        self.advance(bytes.len());
    }

    /// What was written behind the last byte is part of the open record.
    fn advance(&mut self, count: usize) {
        if let Some(chunk) = self.chunks.back_mut() {
            chunk.filled += count;
            self.unwritten += count;
        }
    }
}

impl Drop for SendBuffer {
    fn drop(&mut self) {
        for chunk in self.chunks.drain(..) {
            chunk::give_back(chunk.bytes);
        }
    }
}

/// How many bytes each frame of a read may get: the first goes on in the open record, the others have one each.
fn layout(
    mut space: usize,
    record: Frame,
    first: usize,
    (slots, mut limit): (usize, usize),
) -> [usize; MAX_SLOTS] {
    let mut payloads = [0; MAX_SLOTS];
    let trailer = record.overhead - record.head;
    space -= FRAME_HEADER + first.min(space - FRAME_HEADER - trailer) + trailer;
    payloads[0] = first.min(limit);
    limit -= payloads[0];
    for payload in payloads.iter_mut().take(slots).skip(1) {
        let full = record.overhead + MAX_PAYLOAD;
        // As `ensure_chunk` has it, with or without TLS.
        if space < MAX_PAYLOAD + OVERHEAD || limit == 0 {
            break;
        }
        *payload = (MAX_PAYLOAD - FRAME_HEADER).min(limit);
        limit -= *payload;
        space -= full;
    }
    payloads
}

#[cfg(test)]
mod tests;
