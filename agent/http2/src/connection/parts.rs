//! A connection taken apart into plain values, to be put together again in another process.
//!
//! Nothing is lost: a connection that is put together goes on exactly as the one that was taken apart would have. How the
//! values are carried is up to the caller.

use super::receive::{Input, InputState, PendingBlock};
use super::{Connection, Drain, Role};
use crate::budget::{BudgetParts, Budgets};
use crate::error::ConnectionError;
use crate::event::Event;
use crate::flow::{ReceiveWindow, SendWindow};
use crate::frame::StreamId;
use crate::hpack::decode::{Decoder, TableEntry};
use crate::output::Output;
use crate::settings::{PeerSettings, Settings};
use crate::stream::{Ending, Stream};

/// A stream with its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamParts {
    /// Its id.
    pub id: StreamId,
    /// Its state and windows.
    pub state: Stream,
}

/// What the parser holds of an incomplete frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputParts {
    /// What the next byte belongs to.
    pub state: InputState,
    /// The unparsed beginning of a header or payload.
    pub partial: Vec<u8>,
    /// An incomplete field block.
    pub block: Option<PendingBlock>,
}

/// All of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Which end it is.
    pub role: Role,
    /// Our settings.
    pub local: Settings,
    /// Whether the peer has acknowledged them.
    pub local_acknowledged: bool,
    /// The peer's settings.
    pub peer: PeerSettings,
    /// Whether they have arrived.
    pub peer_seen: bool,
    /// A client's next stream, or one above the highest that a server has seen.
    pub next_stream: StreamId,
    /// The last stream of the peer's GOAWAY.
    pub goaway_received: Option<StreamId>,
    /// How far a drain has come.
    pub drain: Drain,
    /// The connection's window for sending.
    pub send_window: SendWindow,
    /// The connection's window for receiving.
    pub receive_window: ReceiveWindow,
    /// Streams, in the order of their ids.
    pub streams: Vec<StreamParts>,
    /// Closed streams that are remembered, oldest first.
    pub closed: Vec<(StreamId, Ending)>,
    /// How many times a stream asked for credit and there was none.
    pub blocked_count: u64,
    /// What was spent of the abuse budgets.
    pub budgets: BudgetParts,
    /// The decoder's dynamic table, newest entry first.
    pub table: Vec<TableEntry>,
    /// The size that the peer's encoder chose for it.
    pub table_max_size: u32,
    /// Its limit.
    pub table_limit: u32,
    /// Whether our next field block starts with a table size update.
    pub owes_table_update: bool,
    /// Incomplete input.
    pub input: InputParts,
    /// Queued output.
    pub output: Vec<u8>,
    /// Bytes of it that answer the peer.
    pub answers: usize,
    /// Events that were not reported yet.
    pub events: Vec<Event>,
    /// Streams that the peer reset before they carried DATA and that were not reported to the caller.
    pub barren_resets: u32,
    /// Why the connection failed.
    pub failed: Option<ConnectionError>,
}

impl Connection {
    /// Takes the connection apart.
    #[must_use]
    pub fn into_parts(self) -> Parts {
        // Every field by name: one that is added later must be decided about here.
        let Self {
            role,
            local,
            peer,
            peer_seen,
            local_acknowledged,
            next_stream,
            goaway_received,
            drain,
            send_window,
            receive_window,
            // The caller's decisions, which it makes again.
            credit_goal: _,
            held_streams: _,
            barren_resets,
            streams,
            closed,
            blocked_count,
            budgets,
            decoder,
            owes_table_update,
            input: Input { state, partial, block },
            output,
            events,
            scratch: _,
            failed,
        } = self;
        let (table, table_max_size, table_limit) = decoder.into_parts();
        Parts {
            role,
            local,
            local_acknowledged,
            peer,
            peer_seen,
            next_stream,
            goaway_received,
            drain,
            send_window,
            receive_window,
            streams: streams.sorted().into_iter().map(|(id, state)| StreamParts { id, state }).collect(),
            closed: closed.iter().collect(),
            blocked_count,
            budgets: budgets.into_parts(),
            table,
            table_max_size,
            table_limit,
            owes_table_update,
            input: InputParts { state, partial, block },
            output: output.bytes().to_vec(),
            answers: output.answers(),
            events: events.into(),
            barren_resets,
            failed,
        }
    }

    /// Puts a connection together again.
    #[must_use]
    pub fn from_parts(parts: Parts) -> Self {
        let InputParts { state, partial, block } = parts.input;
        let budgets = Budgets::from_parts(parts.budgets, parts.local.max_concurrent_streams);
        Self {
            role: parts.role,
            local: parts.local,
            peer: parts.peer,
            peer_seen: parts.peer_seen,
            local_acknowledged: parts.local_acknowledged,
            next_stream: parts.next_stream,
            goaway_received: parts.goaway_received,
            drain: parts.drain,
            send_window: parts.send_window,
            receive_window: parts.receive_window,
            credit_goal: u32::MAX,
            held_streams: 0,
            barren_resets: parts.barren_resets,
            streams: parts.streams.into_iter().map(|stream| (stream.id, stream.state)).collect(),
            closed: parts.closed.into_iter().collect(),
            blocked_count: parts.blocked_count,
            budgets,
            decoder: Decoder::from_parts(parts.table, parts.table_max_size, parts.table_limit),
            owes_table_update: parts.owes_table_update,
            input: Input { state, partial, block },
            output: Output::from_parts(parts.output, parts.answers),
            events: parts.events.into(),
            scratch: Vec::new(),
            failed: parts.failed,
        }
    }
}
