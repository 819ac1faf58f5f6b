//! The state of a tunnel taken apart, together with what its owner and its copies have left, and put together again.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use isthmus_http2::{Connection, StreamId};
use isthmus_record::OpenerParts;
use tokio::time::Instant;

use super::rest::{Rest, StoppedCopy};
use super::{Bounds, StreamState, TunnelCore, TunnelState, initial_window};
use crate::error::{QuiesceError, TunnelError};
use crate::memory::Account;
use crate::settings::Settings;
use crate::tunnel::parts::{
    AppSocket, CopyParts, KeyParts, OwnerParts, StreamParts, TimerParts, TunnelParts,
};
use crate::tunnel::queue::ReceiveQueue;
use crate::tunnel::send_buffer::{SendBuffer, SendBufferParts};
use crate::tunnel::window::{ConnectionWindow, RoundTrip, WindowUse};

/// What a state that was put together is accompanied by.
pub(in crate::tunnel) struct ResumedState {
    pub(in crate::tunnel) core: Arc<TunnelCore>,
    pub(in crate::tunnel) copies: Vec<(StreamId, CopyParts)>,
    pub(in crate::tunnel) opener: Option<OpenerParts>,
    pub(in crate::tunnel) received: Vec<u8>,
    pub(in crate::tunnel) timers: TimerParts,
    pub(in crate::tunnel) client_limit: Option<usize>,
}

impl TunnelState {
    /// What is left of a tunnel that was taken apart.
    pub(super) fn ended(reason: TunnelError) -> Self {
        let core = TunnelCore::new(
            Connection::client(isthmus_http2::Settings::default()),
            SendBuffer::new(None),
            &Settings::default(),
        );
        let mut state = core.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.ended = Some(reason);
        state
    }

    /// Takes it apart, once the owner and all copies have stopped.
    pub(super) fn into_parts(self) -> Result<TunnelParts, QuiesceError> {
        let Self {
            http2,
            send_buffer,
            streams,
            requests,
            owner: _,
            blocked: _,
            closing,
            goaway,
            // A tunnel whose peer is not ready does not come to rest, nor does one that has ended.
            peer_is_ready: _,
            ended: _,
            round_trip,
            // A setting.
            max_stream_window: _,
            connection_window,
            // Settings, too.
            limit: _,
            reserved: _,
            // What the budgets of this process were charged is returned, and asked for where the tunnel goes on.
            memory: _,
            starved: _,
            rest,
        } = self;
        let owner = rest.owner.ok_or(QuiesceError::Underway)?;
        let OwnerParts { transport, opener, received, timers } = owner;
        let SendBufferParts { sealer, unwritten, owes_key_update } = send_buffer.into_parts()?;
        let streams = streams.into_iter().map(|(id, stream)| stream.into_parts(id));
        let mut streams = streams.collect::<std::io::Result<Vec<_>>>()?;
        streams.sort_unstable_by_key(|stream| stream.id);
        Ok(TunnelParts {
            transport: transport?,
            keys: sealer.zip(opener).map(|(sealer, opener)| KeyParts { sealer, opener }),
            http2: http2.into_parts(),
            unwritten,
            owes_key_update,
            received,
            timers,
            round_trip: round_trip.into_parts(),
            connection_window: connection_window.into_parts(),
            closing,
            goaway,
            streams,
            requests: requests.into(),
            client_limit: None,
            stopped: rest.stopped.unwrap_or_else(Instant::now),
        })
    }
}

impl StreamState {
    fn into_parts(self, id: StreamId) -> std::io::Result<StreamParts> {
        let Self {
            // A stream whose answer was not taken is under no copy.
            answer: _,
            queue,
            // Counted in the account of this process.
            slack: _,
            end,
            lost,
            unprocessed,
            window,
            grown,
            finished,
            discards,
            // Those that linger were left behind.
            lingers: _,
            // Its counts are among what the copy has left.
            sink: _,
            reader: _,
            writer: _,
            stopped,
        } = self;
        Ok(StreamParts {
            id,
            queue: queue.into_pieces(),
            end,
            lost,
            unprocessed,
            window: window.into_parts(),
            grown,
            finished,
            discards,
            copy: stopped.map(StoppedCopy::into_parts).transpose()?,
        })
    }

    fn from_parts(parts: StreamParts) -> (StreamId, Self, Option<CopyParts>) {
        let StreamParts { id, queue, end, lost, unprocessed, window, grown, finished, discards, copy } =
            parts;
        let stream = Self {
            answer: None,
            queue: ReceiveQueue::from_pieces(&queue),
            slack: 0,
            end,
            lost,
            unprocessed,
            window: WindowUse::from_parts(window),
            grown,
            finished,
            discards,
            lingers: false,
            sink: None,
            reader: None,
            writer: None,
            stopped: None,
        };
        (id, stream, copy)
    }
}

impl StoppedCopy {
    fn into_parts(self) -> std::io::Result<CopyParts> {
        let Self {
            tcp,
            sent,
            received,
            slots,
            send_done,
            refused,
            receive_done,
            closed_by,
            write_error,
            released: _,
        } = self;
        // The copy is gone, but its caller may be looking at the socket through a `Weak` of its own.
        let app = AppSocket::new(match Arc::try_unwrap(tcp) {
            Ok(tcp) => tcp.into_std()?,
            Err(shared) => shared.as_fd().try_clone_to_owned()?.into(),
        });
        Ok(CopyParts { app, sent, received, slots, send_done, refused, receive_done, closed_by, write_error })
    }
}

impl TunnelParts {
    /// Puts the state together; the transport is no longer among the parts.
    pub(in crate::tunnel) fn into_state(self, settings: &Settings) -> isthmus_record::Result<ResumedState> {
        let Self {
            transport: _,
            keys,
            http2,
            unwritten,
            owes_key_update,
            received,
            timers,
            round_trip,
            connection_window,
            closing,
            goaway,
            streams,
            requests,
            client_limit,
            stopped: _,
        } = self;
        let (sealer, opener) = keys.map(|keys| (keys.sealer, keys.opener)).unzip();
        let send_buffer = SendBuffer::from_parts(SendBufferParts { sealer, unwritten, owes_key_update })?;
        let (mut states, mut copies) = (HashMap::default(), Vec::new());
        for (id, stream, copy) in streams.into_iter().map(StreamState::from_parts) {
            states.insert(id, stream);
            copies.extend(copy.map(|copy| (id, copy)));
        }
        let Bounds { limit, reserved } = Bounds::new(http2.role, settings);
        let grown =
            states.values().fold(0, |sum: u32, stream: &StreamState| sum.saturating_add(stream.grown));
        let mut state = TunnelState {
            http2: Connection::from_parts(http2),
            send_buffer,
            streams: states,
            requests: VecDeque::from(requests),
            owner: None,
            blocked: Vec::new(),
            closing,
            goaway,
            peer_is_ready: true,
            ended: None,
            round_trip: RoundTrip::from_parts(round_trip),
            max_stream_window: settings.max_stream_window,
            connection_window: ConnectionWindow::from_parts(
                connection_window,
                initial_window(settings),
                grown,
            ),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            reserved,
            memory: Account::new(&settings.memory, limit),
            starved: false,
            rest: Rest::default(),
        };
        state.charge();
        let core = Arc::new(TunnelCore::with(state, settings));
        Ok(ResumedState { core, copies, opener, received, timers, client_limit })
    }
}
