//! A peer made of frames.

use crate::frame::{self, FrameHeader, HEADER_LEN, PREFACE, flag, kind};
use crate::hpack::encode;
use crate::{Connection, ConnectionError, Event, Settings, StreamId};

/// A frame that a connection has queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: StreamId,
    pub(super) payload: Vec<u8>,
}

impl Frame {
    /// The number in a RST_STREAM, WINDOW_UPDATE or the first in a GOAWAY.
    pub(super) fn number(&self) -> u32 {
        frame::u32_at(&self.payload)
    }
}

pub(super) fn frame(kind: u8, flags: u8, stream: StreamId, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, kind, flags, stream, payload);
    out
}

pub(super) fn settings(all: &[(u16, u32)]) -> Vec<u8> {
    let bytes = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(kind::SETTINGS, 0, 0, &all.iter().flat_map(bytes).collect::<Vec<u8>>())
}

pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        encode::literal(name.as_bytes(), value.as_bytes(), &mut out);
    }
    out
}

pub(super) fn headers(stream: StreamId, fields: &[(&str, &str)], end_stream: bool) -> Vec<u8> {
    let end = if end_stream { flag::END_STREAM } else { 0 };
    frame(kind::HEADERS, flag::END_HEADERS | end, stream, &block(fields))
}

pub(super) const TARGET: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
pub(super) const OK: [(&str, &str); 1] = [(":status", "200")];

pub(super) fn connect(stream: StreamId) -> Vec<u8> {
    headers(stream, &TARGET, false)
}

pub(super) fn data(stream: StreamId, payload: &[u8]) -> Vec<u8> {
    frame(kind::DATA, 0, stream, payload)
}

pub(super) fn end(stream: StreamId) -> Vec<u8> {
    frame(kind::DATA, flag::END_STREAM, stream, &[])
}

pub(super) fn reset(stream: StreamId, code: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(super) fn window(stream: StreamId, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(super) fn goaway(last: StreamId, code: u32) -> Vec<u8> {
    frame(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// Everything that the input makes the connection report.
pub(super) fn feed(connection: &mut Connection, input: &[u8]) -> Result<Vec<Event>, ConnectionError> {
    let (mut at, mut events) = (0, Vec::new());
    while let Some(event) = connection.receive(input, &mut at)? {
        events.push(event);
    }
    assert_eq!(at, input.len());
    Ok(events)
}

/// The frames that the connection has queued.
pub(super) fn output(connection: &mut Connection) -> Vec<Frame> {
    let bytes = connection.output().to_vec();
    connection.consumed(bytes.len());
    let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(&bytes);
    let mut frames = Vec::new();
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_LEN>() {
        let FrameHeader { length, kind, flags, stream } = FrameHeader::parse(*header);
        let (payload, behind) = behind.split_at(length as usize);
        frames.push(Frame { kind, flags, stream, payload: payload.to_vec() });
        rest = behind;
    }
    assert!(rest.is_empty(), "whole frames");
    frames
}

/// The types of the frames that the connection has queued.
pub(super) fn kinds(connection: &mut Connection) -> Vec<u8> {
    output(connection).into_iter().map(|frame| frame.kind).collect()
}

pub(super) fn hello(server: bool) -> Vec<u8> {
    let preface = if server { &PREFACE[..] } else { &[] };
    [preface, &settings(&[]), &frame(kind::SETTINGS, flag::ACK, 0, &[])].concat()
}

/// A server whose client has sent its preface and acknowledged the settings.
pub(super) fn server_with(settings: Settings) -> Connection {
    let mut server = Connection::server(settings);
    feed(&mut server, &hello(true)).unwrap();
    output(&mut server);
    server
}

pub(super) fn server() -> Connection {
    server_with(Settings::default())
}

/// A client whose server has sent its settings and acknowledged ours.
pub(super) fn client_with(settings: Settings) -> Connection {
    let mut client = Connection::client(settings);
    feed(&mut client, &hello(false)).unwrap();
    output(&mut client);
    client
}

pub(super) fn client() -> Connection {
    client_with(Settings::default())
}

/// A server with this many answered streams: 1, 3, 5, …
pub(super) fn serving(streams: u32) -> Connection {
    let mut server = server();
    for stream in (0..streams).map(|count| 2 * count + 1) {
        feed(&mut server, &connect(stream)).unwrap();
        server.send_response(stream, 200, &[], false).unwrap();
    }
    output(&mut server);
    server
}

/// A client with this many answered streams.
pub(super) fn tunnelling(streams: u32) -> Connection {
    let mut client = client();
    for _ in 0..streams {
        let stream = client.send_connect("10.0.0.1:80", &[]).unwrap();
        feed(&mut client, &headers(stream, &OK, false)).unwrap();
    }
    output(&mut client);
    client
}
