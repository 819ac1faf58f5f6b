//! Two connections with each other under random work: no violation, no byte lost or out of order, no credit lost.

use std::collections::BTreeMap;

use crate::{Code, Connection, Event, SendError, Settings, StreamId};

/// One end, and what its application knows.
struct End {
    connection: Connection,
    /// Bytes that were sent and not delivered.
    wire: Vec<u8>,
    streams: BTreeMap<StreamId, App>,
}

/// Bytes of a stream count upwards from 0 in each direction.
#[derive(Default)]
struct App {
    answered: bool,
    sent: usize,
    received: usize,
    ungranted: usize,
    finished: bool,
    ended: bool,
}

impl End {
    fn new(connection: Connection) -> Self {
        Self { connection, wire: Vec::new(), streams: BTreeMap::new() }
    }

    fn flush(&mut self) {
        self.wire.extend_from_slice(self.connection.output());
        self.connection.consumed(self.connection.output().len());
    }

    fn receive(&mut self, slice: &[u8]) {
        let mut at = 0;
        while let Some(event) = self.connection.receive(slice, &mut at).unwrap() {
            match event {
                Event::Request { stream, .. } => drop(self.streams.insert(stream, App::default())),
                Event::Response { stream, .. } => self.app(stream).answered = true,
                Event::Data { stream, range } => {
                    let app = self.app(stream);
                    for byte in &slice[range] {
                        assert_eq!(usize::from(*byte), app.received % 251);
                        app.received += 1;
                        app.ungranted += 1;
                    }
                }
                Event::End { stream } => self.app(stream).ended = true,
                Event::Reset { stream, .. } => drop(self.streams.remove(&stream)),
                _ => {}
            }
        }
        self.flush();
    }

    fn app(&mut self, stream: StreamId) -> &mut App {
        self.streams.get_mut(&stream).unwrap()
    }

    fn send(&mut self, stream: StreamId, want: usize, end: bool) {
        let part = self.connection.reserve_data(stream, want);
        let app = self.streams.get_mut(&stream).unwrap();
        match self.connection.data_header(stream, part, end) {
            Ok(header) => {
                self.wire.extend_from_slice(&header);
                let sent = app.sent;
                self.wire.extend((sent..sent + part).map(|count| u8::try_from(count % 251).unwrap()));
                app.sent += part;
                app.finished |= end;
            }
            Err(error) => assert!(error == SendError::State || app.finished, "{error}"),
        }
    }

    /// One random act of the application.
    fn act(&mut self, rng: &mut fastrand::Rng, client: bool) {
        if client && self.connection.can_open().is_ok() && rng.u8(..) < 40 {
            let stream = self.connection.send_connect("a:1", &[("baggage", "x")]).unwrap();
            self.streams.insert(stream, App::default());
        }
        let known: Vec<StreamId> = self.streams.keys().copied().collect();
        let Some(stream) = rng.choice(known) else { return self.flush() };
        match rng.u8(..12) {
            0 if !client && !self.app(stream).answered => {
                self.app(stream).answered = true;
                self.connection.send_response(stream, 200, &[], false).unwrap();
            }
            1 if rng.u8(..) < 30 => {
                self.connection.reset(stream, Code::CANCEL);
                self.streams.remove(&stream);
            }
            2 => self.connection.grow(stream, rng.u32(..100_000)),
            3 => self.connection.grow_connection(rng.u32(..200_000)),
            4 => self.connection.ping([1; 8]),
            5..=7 => {
                let bytes = rng.usize(..=self.app(stream).ungranted);
                self.app(stream).ungranted -= bytes;
                self.connection.grant(stream, u32::try_from(bytes).unwrap());
            }
            _ => {
                self.flush();
                let (want, end) = (rng.usize(..30_000), rng.u8(..) < 20);
                self.send(stream, want, end);
            }
        }
        self.flush();
        if rng.u8(..) < 10 {
            let parts = self.connection.clone().into_parts();
            self.connection = Connection::from_parts(parts);
        }
    }

    /// Grants everything.
    fn settle(&mut self) {
        for (stream, app) in &mut self.streams {
            let bytes = std::mem::take(&mut app.ungranted);
            self.connection.grant(*stream, u32::try_from(bytes).unwrap());
        }
        self.flush();
    }
}

/// Delivers a random part of what one end has sent.
fn deliver(from: &mut End, to: &mut End, part: usize) {
    let slice: Vec<u8> = from.wire.drain(..part.min(from.wire.len())).collect();
    to.receive(&slice);
}

/// What one end may send is what the other end expects.
fn assert_in_step(sender: &End, receiver: &End) {
    let (sender, receiver) =
        (sender.connection.clone().into_parts(), receiver.connection.clone().into_parts());
    assert_eq!(sender.send_window.0, receiver.receive_window.credit);
    let unreleased: u32 = receiver.streams.iter().map(|stream| stream.state.receive_window.unreleased).sum();
    assert_eq!(receiver.receive_window.unreleased, unreleased);
    for window in
        receiver.streams.iter().map(|stream| stream.state.receive_window).chain([receiver.receive_window])
    {
        assert_eq!(window.credit + i64::from(window.unreleased + window.pending), i64::from(window.size));
    }
    for one in &sender.streams {
        let other = receiver.streams.iter().find(|other| other.id == one.id);
        if let Some(other) = other.filter(|other| other.state.receiving == crate::Half::Open) {
            assert_eq!(one.state.send_window.0, other.state.receive_window.credit, "stream {}", one.id);
        }
    }
}

#[test]
fn random_work_loses_neither_bytes_nor_credit() {
    let (mut carried, mut both) = (0, 0);
    for seed in 0..60 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let settings = |window| Settings {
            stream_window: window,
            connection_window: 65_535,
            max_concurrent_streams: 10,
            ..Settings::default()
        };
        let mut client = End::new(Connection::client(settings(rng.u32(1..100_000))));
        let mut server = End::new(Connection::server(settings(rng.u32(1..100_000))));
        for _ in 0..400 {
            client.act(&mut rng, true);
            server.act(&mut rng, false);
            deliver(&mut client, &mut server, rng.usize(..20_000));
            deliver(&mut server, &mut client, rng.usize(..20_000));
        }
        for _ in 0..10 {
            deliver(&mut client, &mut server, usize::MAX);
            deliver(&mut server, &mut client, usize::MAX);
            client.settle();
            server.settle();
        }
        assert!(client.wire.is_empty() && server.wire.is_empty());
        assert_in_step(&client, &server);
        assert_in_step(&server, &client);
        for (stream, app) in &client.streams {
            let Some(other) = server.streams.get(stream) else {
                assert!(app.finished && app.ended, "the server gave up a stream that had ended");
                continue;
            };
            carried += app.sent + app.received;
            both += usize::from(app.finished && app.ended);
            assert_eq!((app.sent, app.received), (other.received, other.sent), "stream {stream}");
            assert_eq!((app.finished, app.ended), (other.ended, other.finished), "stream {stream}");
        }
    }
    assert!(carried > 1_000_000 && both > 10, "{carried} bytes, {both} streams");
}
