//! SETTINGS, PING, GOAWAY and WINDOW_UPDATE.

use super::{Connection, DRAIN_PING, Drain, Role, goaway_event, stream_error};
use crate::budget::Abuse;
use crate::code::Code;
use crate::error::{ConnectionError, Violation};
use crate::event::{Event, ResetCause};
use crate::flow::DEFAULT_WINDOW;
use crate::frame::{self, FrameHeader, StreamId, flag, kind};
use crate::stream::Ending;

impl Connection {
    pub(super) fn settings_frame(&mut self, payload: &[u8]) -> Result<(), ConnectionError> {
        self.budgets.spend(Abuse::Settings, 1)?;
        let before = self.peer;
        self.peer.apply(payload, self.role == Role::Client, !self.peer_seen)?;
        self.peer_seen = true;
        // Our encoder keeps no table, but a peer that lowers the limit waits for the update.
        self.owes_table_update |= self.peer.header_table_size < before.header_table_size;
        let change = i64::from(self.peer.initial_window_size) - i64::from(before.initial_window_size);
        if change != 0 {
            for (_, stream) in self.streams.iter_mut() {
                stream.send_window.adjust(change).map_err(|_| Violation::WindowOverflow)?;
            }
        }
        self.output.answer(kind::SETTINGS, flag::ACK, 0, &[]);
        self.events.push_back(Event::PeerSettings);
        if change > 0 {
            self.wake_blocked();
        }
        Ok(())
    }

    /// From here on the peer's frames follow our settings (RFC 9113 §6.5.3, §6.9.2).
    pub(super) fn settings_acknowledged(&mut self) -> Result<(), ConnectionError> {
        if self.local_acknowledged {
            return Ok(self.budgets.spend(Abuse::Settings, 1)?);
        }
        self.local_acknowledged = true;
        self.decoder.set_limit(self.local.header_table_size);
        let change = i64::from(self.local.stream_window) - i64::from(DEFAULT_WINDOW);
        for (_, stream) in self.streams.iter_mut() {
            stream.receive_window.credit += change;
        }
        self.events.push_back(Event::SettingsAcknowledged);
        Ok(())
    }

    pub(super) fn ping_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Result<(), ConnectionError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(payload);
        if !header.has(flag::ACK) {
            self.budgets.spend(Abuse::Ping, 1)?;
            self.output.answer(kind::PING, flag::ACK, 0, payload);
        } else if bytes == DRAIN_PING && self.drain == Drain::Announced {
            self.drain_last();
        } else {
            self.budgets.spend(Abuse::Ping, 1)?;
            self.events.push_back(Event::Pong { payload: bytes });
        }
        Ok(())
    }

    pub(super) fn goaway_frame(&mut self, payload: &[u8]) -> Result<(), ConnectionError> {
        self.budgets.spend(Abuse::GoAway, 1)?;
        let last = frame::u31(payload);
        if self.goaway_received.is_some_and(|before| last > before) {
            return Err(Violation::GoAwayIncreased.into());
        }
        self.goaway_received = Some(last);
        let code = Code(frame::u32_at(&payload[4..]));
        self.events.push_back(goaway_event(last, code, &payload[8..]));
        if self.role == Role::Client {
            let lost =
                self.streams.sorted().into_iter().filter(|(id, stream)| *id > last && !stream.is_closed());
            for (stream, _) in lost {
                self.remove_stream(stream, Ending::LocalReset);
                let (code, cause) = (Code::REFUSED_STREAM, ResetCause::GoAway);
                self.events.push_back(Event::Reset { stream, code, cause });
            }
        }
        Ok(())
    }

    pub(super) fn window_update_frame(
        &mut self,
        id: StreamId,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        self.budgets.spend(Abuse::WindowUpdate, 1)?;
        let increment = frame::u31(payload);
        if id == 0 {
            if increment == 0 {
                return Err(Violation::ZeroIncrement.into());
            }
            let empty = self.send_window.available() == 0;
            self.send_window.adjust(i64::from(increment)).map_err(|_| Violation::WindowOverflow)?;
            if empty {
                self.wake_blocked();
            }
            return Ok(());
        }
        if self.is_idle(id) {
            return Err(Violation::IdleStream.into());
        }
        // The stream may have ended while this was in flight (RFC 9113 §5.1).
        let Some(stream) = self.streams.live(id) else {
            return Ok(self.budgets.spend(Abuse::LateFrame, 1)?);
        };
        if increment == 0 {
            return self.fail_stream(stream_error(id, Violation::ZeroIncrement));
        }
        if stream.send_window.adjust(i64::from(increment)).is_err() {
            return self.fail_stream(stream_error(id, Violation::WindowOverflow));
        }
        let sendable = self.send_window.available() > 0 && stream.send_window.available() > 0;
        if sendable && stream.blocked.take().is_some() {
            self.events.push_back(Event::Window { stream: id });
        }
        Ok(())
    }

    /// Reports the streams that waited for credit and have some, in the order they asked.
    fn wake_blocked(&mut self) {
        if self.send_window.available() == 0 {
            return;
        }
        let able = |(id, stream): (StreamId, &mut crate::stream::Stream)| {
            let asked = stream.blocked.filter(|_| stream.send_window.available() > 0)?;
            stream.blocked = None;
            Some((asked, id))
        };
        let mut woken: Vec<(u64, StreamId)> = self.streams.iter_mut().filter_map(able).collect();
        woken.sort_unstable();
        self.events.extend(woken.into_iter().map(|(_, stream)| Event::Window { stream }));
    }
}
