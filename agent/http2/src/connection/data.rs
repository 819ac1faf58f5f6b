//! DATA: flow control, padding, and the payload as it arrives.

use super::receive::InputState;
use super::{Connection, stream_error};
use crate::budget::Abuse;
use crate::error::{ConnectionError, Violation};
use crate::event::Event;
use crate::frame::{FrameHeader, StreamId, flag};
use crate::stream::Half;

impl Connection {
    /// Counts a whole frame, padding included, against both windows as soon as its header is known: from then on it is in
    /// flight to the application, or given back.
    pub(super) fn start_data(&mut self, header: FrameHeader) -> Result<(), ConnectionError> {
        let FrameHeader { length, stream, .. } = header;
        let (padded, end_stream) = (header.has(flag::PADDED), header.has(flag::END_STREAM));
        if padded && length == 0 {
            return Err(Violation::FrameLength.into());
        }
        if !self.receive_window.receive(length) {
            return Err(Violation::WindowExceeded.into());
        }
        if length == 0 && !end_stream {
            self.budgets.spend(Abuse::EmptyData, 1)?;
        }
        if !self.admit_data(stream, length)? {
            self.release_connection(length);
            self.input.state = InputState::Skip(length);
            return Ok(());
        }
        if length > 0 {
            self.budgets.earn(Abuse::Ping, 1);
            self.budgets.earn(Abuse::EmptyData, u32::from(!padded));
        }
        let padding = if padded { None } else { Some(0) };
        self.input.state = InputState::Data { stream, left: length, padding, end_stream };
        Ok(())
    }

    /// Whether a frame is for the application.
    fn admit_data(&mut self, id: StreamId, length: u32) -> Result<bool, ConnectionError> {
        if self.is_idle(id) {
            return Err(Violation::IdleStream.into());
        }
        let Some(stream) = self.streams.live(id) else {
            self.closed_frame(id)?;
            return Ok(false);
        };
        let violation = match stream.receiving {
            Half::AwaitsHead => Violation::DataBeforeHead,
            Half::Closed => Violation::ClosedStream,
            Half::Open if stream.receive_window.receive(length) => {
                stream.carried |= length > 0;
                return Ok(true);
            }
            Half::Open => Violation::WindowExceeded,
        };
        self.fail_stream(stream_error(id, violation))?;
        Ok(false)
    }

    /// Reads on in a DATA frame; `rest` is the input, which begins at `at` of the caller's slice. Returns how much was
    /// read, or `None` when more input is needed.
    pub(super) fn data_part(
        &mut self,
        rest: &[u8],
        at: usize,
        (stream, left, padding, end_stream): (StreamId, u32, Option<u32>, bool),
    ) -> Result<Option<usize>, ConnectionError> {
        let Some(padding) = padding else {
            let Some(first) = rest.first() else { return Ok(None) };
            let (padding, left) = (u32::from(*first), left - 1);
            if padding > left {
                return Err(Violation::Padding.into());
            }
            if padding == left && !end_stream {
                self.budgets.spend(Abuse::EmptyData, 1)?;
            }
            // The application never sees it.
            self.grant(stream, padding + 1);
            self.input.state = InputState::Data { stream, left, padding: Some(padding), end_stream };
            return Ok(Some(1));
        };
        if left == 0 {
            self.input.state = InputState::Header;
            if end_stream && self.streams.live(stream).is_some() {
                self.close_receiving(stream);
            }
            return Ok(Some(0));
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let payload = left > padding;
        let part = rest.len().min(if payload { left - padding } else { left } as usize);
        let left = left - u32::try_from(part).unwrap_or(left);
        self.input.state = InputState::Data { stream, left, padding: Some(padding.min(left)), end_stream };
        // The stream may have been reset since the last part; its bytes were given back then.
        if payload && self.streams.live(stream).is_some() {
            self.events.push_back(Event::Data { stream, range: at..at + part });
        }
        Ok(Some(part))
    }
}
