//! Field blocks: putting them together, decoding, and what heads do to streams.

use super::receive::PendingBlock;
use super::{Connection, Drain, Role, stream_error};
use crate::budget::Abuse;
use crate::code::Code;
use crate::error::{ConnectionError, StreamError, Violation};
use crate::event::Event;
use crate::fields::Fields;
use crate::frame::{self, FrameHeader, StreamId, flag};
use crate::head::{Malformed, RequestHead, ResponseHead, check_trailers};
use crate::hpack::decode::Decoded;
use crate::hpack::encode;
use crate::stream::{Ending, Half};

/// CONTINUATION frames in one block: a block of the largest list in frames of the smallest useful size.
const MAX_CONTINUATIONS: u32 = 32;

/// Steps of time within which the reset of an unanswered request is rapid.
const RAPID: u32 = 2;

/// By how much a block may be larger than the largest list.
const BLOCK_MARGIN: usize = 16 * 1024;

impl Connection {
    pub(super) fn headers_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        let mut block = payload;
        if header.has(flag::PADDED) {
            let (padding, rest) = block.split_first().ok_or(Violation::FrameLength)?;
            let kept = rest.len().checked_sub(usize::from(*padding)).ok_or(Violation::Padding)?;
            block = &rest[..kept];
        }
        if header.has(flag::PRIORITY) {
            block = block.get(5..).ok_or(Violation::FrameLength)?;
        }
        let (stream, end_stream) = (header.stream, header.has(flag::END_STREAM));
        if header.has(flag::END_HEADERS) {
            return self.field_block(stream, end_stream, block);
        }
        let block = block.to_vec();
        self.input.block = Some(PendingBlock { stream, end_stream, block, continuations: 0 });
        Ok(())
    }

    /// The frame was checked to continue the pending block.
    pub(super) fn continuation_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        let Some(mut pending) = self.input.block.take() else { return Ok(()) };
        pending.continuations += 1;
        let most = self.local.max_header_list_size as usize + BLOCK_MARGIN;
        if pending.continuations > MAX_CONTINUATIONS || pending.block.len() + payload.len() > most {
            return Err(Abuse::Continuation.into());
        }
        pending.block.extend_from_slice(payload);
        if header.has(flag::END_HEADERS) {
            return self.field_block(pending.stream, pending.end_stream, &pending.block);
        }
        self.input.block = Some(pending);
        Ok(())
    }

    /// Every block is decoded, also for streams that are refused: the decoder's state must follow the encoder's.
    fn field_block(
        &mut self,
        stream: StreamId,
        end_stream: bool,
        block: &[u8],
    ) -> Result<(), ConnectionError> {
        let decoded = self.decoder.decode(block, self.local.max_header_list_size as usize)?;
        if self.streams.live(stream).is_some() {
            return self.head_of_known(stream, end_stream, decoded);
        }
        if stream.is_multiple_of(2) || (self.role == Role::Client && self.is_idle(stream)) {
            return Err(Violation::IdleStream.into());
        }
        if self.is_idle(stream) {
            return self.open_stream(stream, end_stream, decoded);
        }
        if self.role == Role::Server && self.closed.ending(stream).is_none() && !self.is_ignored(stream) {
            return Err(Violation::StreamOrder.into());
        }
        self.closed_frame(stream)
    }

    /// Whether a stream was opened behind our final GOAWAY.
    fn is_ignored(&self, stream: StreamId) -> bool {
        matches!(self.drain, Drain::Last(last) if stream > last)
    }

    fn open_stream(
        &mut self,
        stream: StreamId,
        end_stream: bool,
        decoded: Decoded,
    ) -> Result<(), ConnectionError> {
        self.next_stream = stream.saturating_add(2);
        if self.is_ignored(stream) {
            return Ok(self.budgets.spend(Abuse::LateFrame, 1)?);
        }
        let most = self.local.max_concurrent_streams as usize;
        if self.streams.active() >= most || self.held_streams >= most.saturating_mul(2) {
            return self.fail_stream(stream_error(stream, Violation::TooManyStreams));
        }
        if decoded.oversize {
            return self.refuse_oversize(stream);
        }
        match RequestHead::new(decoded.fields) {
            Err(malformed) => self.fail_stream(stream_error(stream, Violation::Malformed(malformed))),
            Ok(head) => {
                self.streams.insert(stream, self.new_stream(Half::Open, Half::AwaitsHead));
                self.earn_for_stream();
                self.events.push_back(Event::Request { stream, head });
                if end_stream {
                    self.close_receiving(stream);
                }
                Ok(())
            }
        }
    }

    /// Answers 431 (RFC 6585 §5), which says more than a reset; the reset behind it stops the rest of the stream.
    fn refuse_oversize(&mut self, stream: StreamId) -> Result<(), ConnectionError> {
        let mut block = Vec::new();
        if std::mem::take(&mut self.owes_table_update) {
            encode::empty_table(&mut block);
        }
        encode::status(431, &mut block);
        frame::write_block(self.output.buffer(), stream, true, &block, self.peer.max_frame_size);
        let (code, reason) = (Code::NO_ERROR, Violation::HeaderListSize);
        self.fail_stream(StreamError { stream, code, reason })
    }

    /// A response, or trailers.
    fn head_of_known(
        &mut self,
        id: StreamId,
        end_stream: bool,
        decoded: Decoded,
    ) -> Result<(), ConnectionError> {
        let Some(stream) = self.streams.live(id) else { return Ok(()) };
        let receiving = stream.receiving;
        if receiving == Half::Closed {
            return self.fail_stream(stream_error(id, Violation::ClosedStream));
        }
        if decoded.oversize {
            return self.fail_stream(stream_error(id, Violation::HeaderListSize));
        }
        let done = if receiving == Half::AwaitsHead {
            self.response(id, end_stream, decoded.fields)?
        } else {
            self.trailers(id, end_stream, decoded.fields)
        };
        match done {
            Ok(()) => Ok(()),
            Err(malformed) => self.fail_stream(stream_error(id, Violation::Malformed(malformed))),
        }
    }

    fn response(
        &mut self,
        id: StreamId,
        end_stream: bool,
        fields: Fields,
    ) -> Result<Result<(), Malformed>, ConnectionError> {
        let head = match ResponseHead::new(fields) {
            Ok(head) if head.is_interim() && end_stream => return Ok(Err(Malformed::Misplaced)),
            Ok(head) => head,
            Err(malformed) => return Ok(Err(malformed)),
        };
        if head.is_interim() {
            self.budgets.spend(Abuse::Interim, 1)?;
            return Ok(Ok(()));
        }
        if let Some(stream) = self.streams.live(id) {
            stream.receiving = Half::Open;
        }
        self.budgets.earn(Abuse::Interim, 1);
        self.events.push_back(Event::Response { stream: id, head });
        if end_stream {
            self.close_receiving(id);
        }
        Ok(Ok(()))
    }

    fn trailers(&mut self, stream: StreamId, end_stream: bool, fields: Fields) -> Result<(), Malformed> {
        if !end_stream {
            return Err(Malformed::Misplaced);
        }
        check_trailers(&fields)?;
        self.events.push_back(Event::Trailers { stream, fields });
        self.close_receiving(stream);
        Ok(())
    }

    /// A RST_STREAM. Streams that are reset at once, before they were answered, cost us work and the peer nothing. Clients
    /// that give up after a time are honest, and are bounded by that time and MAX_CONCURRENT_STREAMS.
    pub(super) fn reset_frame(&mut self, id: StreamId, payload: &[u8]) -> Result<(), ConnectionError> {
        if self.is_idle(id) {
            return Err(Violation::IdleStream.into());
        }
        let Some(stream) = self.streams.live(id) else {
            // The stream may have ended while this was in flight (RFC 9113 §5.1).
            return Ok(self.budgets.spend(Abuse::LateFrame, 1)?);
        };
        let unanswered = self.role == Role::Server && stream.sending == Half::AwaitsHead;
        let rapid = unanswered && self.budgets.steps().wrapping_sub(stream.opened) < RAPID;
        let barren = self.role == Role::Server && !stream.carried;
        self.remove_stream(id, Ending::PeerReset);
        let code = Code(frame::u32_at(payload));
        let cause = crate::event::ResetCause::Peer;
        self.events.push_back(Event::Reset { stream: id, code, cause });
        if barren {
            self.barren_resets += 1;
            self.budgets.spend(Abuse::BarrenReset, 1)?;
        } else {
            self.budgets.earn(Abuse::BarrenReset, 1);
        }
        if rapid { Ok(self.budgets.spend(Abuse::RapidReset, 1)?) } else { Ok(()) }
    }
}
