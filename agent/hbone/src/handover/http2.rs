//! The HTTP/2 connection between values and messages.

use std::time::Duration;

use isthmus_http2::budget::{BudgetParts, KINDS};
use isthmus_http2::{
    Drain, Ending, FrameHeader, HEADER_LEN, Half, InputParts, InputState, Parts, PeerSettings, PendingBlock,
    ReceiveWindow, Role, SendWindow, Settings, Stream, StreamParts,
};
use isthmus_proto::handover as proto;
use prost::bytes::Buf as _;

use super::wire::{
    DecodeError, EncodeError, MAX_BUFFERED, MAX_STREAMS, MAX_U31, at_most, bounded, count, index, micros,
};

/// Closed streams that a connection remembers at most.
const MAX_CLOSED: usize = 1024;
/// Bytes of a dynamic table, or of a field block that is not complete.
const MAX_FIELDS: usize = 1024 * 1024;
/// The largest frame (RFC 9113 §4.2).
const MAX_FRAME: u32 = (1 << 24) - 1;

// === encoding ===

pub(super) fn encode(parts: &Parts) -> Result<proto::Http2, EncodeError> {
    let Parts {
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
        streams,
        closed,
        blocked_count,
        budgets: BudgetParts { spent, steps, carried },
        table,
        table_max_size,
        table_limit,
        owes_table_update,
        input,
        output,
        answers,
        events,
        barren_resets,
        failed,
    } = parts;
    if failed.is_some() || !events.is_empty() {
        return Err(EncodeError::Field("http/2 connection"));
    }
    let field =
        |(name, value): &(Vec<u8>, Vec<u8>)| proto::Field { name: name.clone(), value: value.clone() };
    Ok(proto::Http2 {
        server: *role == Role::Server,
        local: Some(settings(local)),
        local_acknowledged: *local_acknowledged,
        peer: Some(peer_settings(peer)),
        peer_seen: *peer_seen,
        next_stream: *next_stream,
        goaway_received: *goaway_received,
        drain_announced: *drain == Drain::Announced,
        drain_last: if let Drain::Last(last) = drain { Some(*last) } else { None },
        send_window: send_window.0,
        receive_window: Some(window(*receive_window)),
        streams: streams.iter().map(stream).collect(),
        closed: closed.iter().map(|(id, ending)| closed_stream(*id, *ending)).collect(),
        blocked_count: *blocked_count,
        spent: spent.to_vec(),
        steps: *steps,
        carried: micros(*carried),
        table: table.iter().map(field).collect(),
        table_max_size: *table_max_size,
        table_limit: *table_limit,
        owes_table_update: *owes_table_update,
        input: Some(input_message(input)?),
        output: output.clone(),
        answers: count(*answers),
        barren_resets: *barren_resets,
    })
}

fn settings(settings: &Settings) -> proto::Settings {
    let Settings {
        header_table_size,
        max_concurrent_streams,
        stream_window,
        connection_window,
        max_frame_size,
        max_header_list_size,
        initial_send_streams,
        max_queued_answers,
    } = *settings;
    proto::Settings {
        header_table_size,
        max_concurrent_streams,
        stream_window,
        connection_window,
        max_frame_size,
        max_header_list_size,
        initial_send_streams,
        max_queued_answers: count(max_queued_answers),
    }
}

fn peer_settings(settings: &PeerSettings) -> proto::PeerSettings {
    let PeerSettings {
        header_table_size,
        max_concurrent_streams,
        initial_window_size,
        max_frame_size,
        max_header_list_size,
    } = *settings;
    proto::PeerSettings {
        header_table_size,
        max_concurrent_streams,
        initial_window_size,
        max_frame_size,
        max_header_list_size,
    }
}

fn window(window: ReceiveWindow) -> proto::Window {
    let ReceiveWindow { size, credit, unreleased, pending } = window;
    proto::Window { size, credit, unreleased, pending }
}

fn stream(parts: &StreamParts) -> proto::Http2Stream {
    let StreamParts { id, state } = *parts;
    let Stream { receiving, sending, send_window, receive_window, blocked, opened, carried } = state;
    proto::Http2Stream {
        id,
        receiving: half(receiving).into(),
        sending: half(sending).into(),
        send_window: send_window.0,
        receive_window: Some(window(receive_window)),
        blocked,
        opened,
        carried,
    }
}

fn half(half: Half) -> proto::Half {
    match half {
        Half::AwaitsHead => proto::Half::AwaitsHead,
        Half::Open => proto::Half::Open,
        Half::Closed => proto::Half::Closed,
    }
}

fn closed_stream(id: u32, ending: Ending) -> proto::ClosedStream {
    use proto::closed_stream::Ending as Message;
    let ending = match ending {
        Ending::Ended => Message::Ended,
        Ending::LocalReset => Message::LocalReset,
        Ending::PeerReset => Message::PeerReset,
    };
    proto::ClosedStream { id, ending: ending.into() }
}

fn input_message(input: &InputParts) -> Result<proto::Input, EncodeError> {
    use proto::input::{Block, Data, State};
    let InputParts { state, partial, block } = input;
    let state = match *state {
        // A client that is not ready does not come to rest.
        InputState::Preface => return Err(EncodeError::Field("preface")),
        InputState::Header => None,
        InputState::Payload(header) => Some(State::PayloadOf(header.encode().to_vec())),
        InputState::Data { stream, left, padding, end_stream } => {
            Some(State::Data(Data { stream, left, padding, end_stream }))
        }
        InputState::Skip(left) => Some(State::Skip(left)),
    };
    let block = block.clone().map(|block| {
        let PendingBlock { stream, end_stream, block, continuations } = block;
        Block { stream, end_stream, block, continuations }
    });
    Ok(proto::Input { state, partial: partial.clone(), block })
}

// === decoding ===

pub(super) fn decode(message: proto::Http2) -> Result<Parts, DecodeError> {
    let proto::Http2 {
        server,
        local,
        local_acknowledged,
        peer,
        peer_seen,
        next_stream,
        goaway_received,
        drain_announced,
        drain_last,
        send_window,
        receive_window,
        streams,
        closed,
        blocked_count,
        spent,
        steps,
        carried,
        table,
        table_max_size,
        table_limit,
        owes_table_update,
        input,
        output,
        answers,
        barren_resets,
    } = message;
    let next_stream = at_most(next_stream, MAX_U31 + 2, "next stream")?;
    let closed = bounded(closed, MAX_CLOSED, "closed streams")?.into_iter().map(closed_from);
    let size: usize = table.iter().map(|field| field.name.len() + field.value.len() + 32).sum();
    at_most(size, MAX_FIELDS, "dynamic table")?;
    let output = bounded(output, MAX_BUFFERED, "output")?;
    Ok(Parts {
        role: if server { Role::Server } else { Role::Client },
        local: settings_from(local.ok_or(DecodeError::Field("settings"))?)?,
        local_acknowledged,
        peer: peer_settings_from(peer.ok_or(DecodeError::Field("settings of the peer"))?)?,
        peer_seen,
        next_stream,
        goaway_received,
        drain: drain_from(drain_announced, drain_last),
        send_window: send_window_from(send_window)?,
        receive_window: window_from(receive_window)?,
        streams: streams_from(streams, next_stream)?,
        closed: closed.collect::<Result<_, _>>()?,
        blocked_count: at_most(blocked_count, u64::MAX / 2, "blocked streams")?,
        budgets: budgets_from(spent, steps, carried)?,
        table: table.into_iter().map(|field| (field.name, field.value)).collect(),
        table_max_size,
        table_limit: at_most(table_limit, u32::try_from(MAX_FIELDS).unwrap_or(u32::MAX), "dynamic table")?,
        owes_table_update,
        input: input_from(input.ok_or(DecodeError::Field("input"))?)?,
        answers: at_most(index(answers, "answers")?, output.len(), "answers")?,
        output,
        events: Vec::new(),
        barren_resets: at_most(barren_resets, MAX_U31, "resets")?,
        failed: None,
    })
}

fn drain_from(announced: bool, last: Option<u32>) -> Drain {
    match last {
        Some(last) => Drain::Last(last),
        None if announced => Drain::Announced,
        None => Drain::Open,
    }
}

fn streams_from(list: Vec<proto::Http2Stream>, next: u32) -> Result<Vec<StreamParts>, DecodeError> {
    let streams = bounded(list, MAX_STREAMS, "streams")?.into_iter().map(stream_from);
    let streams = streams.collect::<Result<Vec<_>, _>>()?;
    let ascending = streams.windows(2).all(|pair| pair[0].id < pair[1].id);
    if !ascending || streams.iter().any(|stream| stream.id.is_multiple_of(2) || stream.id >= next) {
        return Err(DecodeError::Field("streams"));
    }
    Ok(streams)
}

fn budgets_from(spent: Vec<u32>, steps: u32, carried: u64) -> Result<BudgetParts, DecodeError> {
    let spent = <[u32; KINDS]>::try_from(spent).map_err(|_| DecodeError::Field("budgets"))?;
    let carried = at_most(Duration::from_micros(carried), Duration::from_secs(60), "time carried")?;
    Ok(BudgetParts { spent, steps, carried })
}

fn settings_from(message: proto::Settings) -> Result<Settings, DecodeError> {
    let proto::Settings {
        header_table_size,
        max_concurrent_streams,
        stream_window,
        connection_window,
        max_frame_size,
        max_header_list_size,
        initial_send_streams,
        max_queued_answers,
    } = message;
    let max_queued_answers = index(max_queued_answers, "settings")?;
    let settings = Settings {
        header_table_size,
        max_concurrent_streams,
        stream_window,
        connection_window,
        max_frame_size,
        max_header_list_size,
        initial_send_streams,
        max_queued_answers,
    };
    if settings.clone().bounded() == settings { Ok(settings) } else { Err(DecodeError::Field("settings")) }
}

fn peer_settings_from(message: proto::PeerSettings) -> Result<PeerSettings, DecodeError> {
    let proto::PeerSettings {
        header_table_size,
        max_concurrent_streams,
        initial_window_size,
        max_frame_size,
        max_header_list_size,
    } = message;
    if !((1 << 14)..=MAX_FRAME).contains(&max_frame_size) {
        return Err(DecodeError::Field("settings of the peer"));
    }
    Ok(PeerSettings {
        header_table_size,
        max_concurrent_streams,
        initial_window_size: at_most(initial_window_size, MAX_U31, "settings of the peer")?,
        max_frame_size,
        max_header_list_size,
    })
}

fn send_window_from(window: i64) -> Result<SendWindow, DecodeError> {
    let range = -i64::from(MAX_U31)..=i64::from(MAX_U31);
    if range.contains(&window) { Ok(SendWindow(window)) } else { Err(DecodeError::Field("window")) }
}

fn window_from(message: Option<proto::Window>) -> Result<ReceiveWindow, DecodeError> {
    let proto::Window { size, credit, unreleased, pending } = message.ok_or(DecodeError::Field("window"))?;
    let credit = send_window_from(credit)?.0;
    let sum = credit.saturating_add(i64::from(unreleased)).saturating_add(i64::from(pending));
    if size > MAX_U31 || unreleased > MAX_U31 || pending > MAX_U31 || sum > i64::from(MAX_U31) {
        return Err(DecodeError::Field("window"));
    }
    Ok(ReceiveWindow { size, credit, unreleased, pending })
}

fn stream_from(message: proto::Http2Stream) -> Result<StreamParts, DecodeError> {
    let proto::Http2Stream { id, receiving, sending, send_window, receive_window, blocked, opened, carried } =
        message;
    let state = Stream {
        receiving: half_from(receiving)?,
        sending: half_from(sending)?,
        send_window: send_window_from(send_window)?,
        receive_window: window_from(receive_window)?,
        blocked,
        opened,
        carried,
    };
    Ok(StreamParts { id, state })
}

fn half_from(message: i32) -> Result<Half, DecodeError> {
    match proto::Half::try_from(message) {
        Ok(proto::Half::AwaitsHead) => Ok(Half::AwaitsHead),
        Ok(proto::Half::Open) => Ok(Half::Open),
        Ok(proto::Half::Closed) => Ok(Half::Closed),
        Err(_) => Err(DecodeError::Field("half of a stream")),
    }
}

fn closed_from(message: proto::ClosedStream) -> Result<(u32, Ending), DecodeError> {
    use proto::closed_stream::Ending as Message;
    let ending = match Message::try_from(message.ending) {
        Ok(Message::Ended) => Ending::Ended,
        Ok(Message::LocalReset) => Ending::LocalReset,
        Ok(Message::PeerReset) => Ending::PeerReset,
        Err(_) => return Err(DecodeError::Field("closed streams")),
    };
    Ok((message.id, ending))
}

fn input_from(message: proto::Input) -> Result<InputParts, DecodeError> {
    use proto::input::{Block, Data, State};
    let proto::Input { state, partial, block } = message;
    let invalid = DecodeError::Field("input");
    // What the parser may have collected before the whole has arrived.
    let (state, whole) = match state {
        None => (InputState::Header, HEADER_LEN),
        Some(State::PayloadOf(header)) => {
            let mut bytes = [0; HEADER_LEN];
            if header.len() != HEADER_LEN {
                return Err(invalid);
            }
            header.as_slice().copy_to_slice(&mut bytes);
            let header = FrameHeader::parse(bytes);
            (InputState::Payload(header), usize::try_from(header.length).unwrap_or(usize::MAX))
        }
        Some(State::Data(Data { stream, left, padding, end_stream })) => {
            if left > MAX_FRAME
                || padding.is_some_and(|padding| padding > left)
                || (padding.is_none() && left == 0)
            {
                return Err(invalid);
            }
            (InputState::Data { stream, left, padding, end_stream }, 0)
        }
        Some(State::Skip(left)) => (InputState::Skip(at_most(left, MAX_FRAME, "input")?), 0),
    };
    if !partial.is_empty() && partial.len() >= whole {
        return Err(invalid);
    }
    let block = match block {
        Some(Block { stream, end_stream, block, continuations }) => {
            let block = bounded(block, MAX_FIELDS, "field block")?;
            Some(PendingBlock { stream, end_stream, block, continuations })
        }
        None => None,
    };
    Ok(InputParts { state, partial, block })
}
