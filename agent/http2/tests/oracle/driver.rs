//! Drives a connection over a byte stream, as a data path would: echoes, or sends and collects.

use std::collections::BTreeMap;

use isthmus_http2::{Code, Connection, ConnectionError, Event, Role, StreamId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

/// Bytes that may wait to be written before streams have to wait.
const UNSENT: usize = 32 * 1024;

/// The application of one stream.
#[derive(Debug, Default)]
pub(crate) struct App {
    pub(crate) status: Option<u16>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) received: Vec<u8>,
    pub(crate) ended: bool,
    pub(crate) reset: Option<Code>,
    /// Bytes to send, and whether nothing follows.
    to_send: Vec<u8>,
    finish: bool,
    finished: bool,
}

/// A connection with its applications.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) connection: Connection,
    pub(crate) apps: BTreeMap<StreamId, App>,
    pub(crate) goaways: Vec<(StreamId, Code)>,
    pub(crate) pongs: usize,
    /// Reset a stream that has received this many bytes.
    pub(crate) reset_after: Option<(usize, Code)>,
    /// Drain once this many requests were received.
    pub(crate) drain_after: Option<usize>,
    /// Slices in which the input is handed over, one after the other.
    pub(crate) slices: Vec<usize>,
    out: Vec<u8>,
    /// DATA waits for the peer's SETTINGS: an h2 server that lowers its window under bytes in flight does not give their
    /// credit back.
    ready: bool,
}

impl Driver {
    pub(crate) fn new(connection: Connection) -> Self {
        Self {
            connection,
            apps: BTreeMap::new(),
            goaways: Vec::new(),
            pongs: 0,
            reset_after: None,
            drain_after: None,
            slices: vec![16_384],
            out: Vec::new(),
            ready: false,
        }
    }

    /// Opens a stream that sends this and then ends.
    pub(crate) fn open(&mut self, bytes: Vec<u8>, labels: &[(&str, &str)]) -> StreamId {
        let stream = self.connection.send_connect("10.0.0.1:80", labels).unwrap();
        self.apps.insert(stream, App { to_send: bytes, finish: true, ..App::default() });
        stream
    }

    /// Whether every stream has ended or was reset.
    pub(crate) fn is_done(&self) -> bool {
        self.apps.values().all(|app| app.reset.is_some() || (app.ended && app.finished))
    }

    /// Runs until the peer closes, or until `until` holds and all was written.
    pub(crate) async fn run(
        &mut self,
        io: &mut DuplexStream,
        until: impl Fn(&Self) -> bool,
    ) -> Result<(), ConnectionError> {
        let mut input = vec![0; 40_000];
        let mut turn = 0;
        loop {
            self.send();
            if self.out.is_empty() && until(self) {
                return Ok(());
            }
            let size = self.slices[turn % self.slices.len()];
            turn += 1;
            let (mut reader, mut writer) = tokio::io::split(&mut *io);
            tokio::select! {
                read = reader.read(&mut input[..size]) => match read {
                    Ok(count) if count > 0 => self.receive(&input[..count])?,
                    _ => return Ok(()),
                },
                written = writer.write(&self.out), if !self.out.is_empty() => match written {
                    Ok(count) => drop(self.out.drain(..count)),
                    Err(_) => self.out.clear(),
                },
            }
        }
    }

    fn receive(&mut self, slice: &[u8]) -> Result<(), ConnectionError> {
        let mut at = 0;
        while let Some(event) = self.connection.receive(slice, &mut at)? {
            match event {
                Event::Request { stream, head } => self.answer(stream, &head),
                Event::Response { stream, head } => {
                    let app = self.apps.get_mut(&stream).unwrap();
                    app.status = Some(head.status);
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    app.labels = head.fields.iter().map(|(name, value)| (text(name), text(value))).collect();
                }
                Event::Data { stream, range } => self.data(stream, &slice[range]),
                Event::End { stream } => {
                    let app = self.apps.get_mut(&stream).unwrap();
                    app.ended = true;
                    app.finish = true;
                }
                Event::Reset { stream, code, .. } => self.apps.get_mut(&stream).unwrap().reset = Some(code),
                Event::GoAway { last_stream, code, .. } => self.goaways.push((last_stream, code)),
                Event::PeerSettings => self.ready = true,
                Event::Pong { .. } => self.pongs += 1,
                _ => {}
            }
        }
        Ok(())
    }

    fn answer(&mut self, stream: StreamId, head: &isthmus_http2::RequestHead) {
        let baggage = head.fields.get("baggage").map(|value| String::from_utf8(value.to_vec()).unwrap());
        let labels: Vec<_> = baggage.iter().map(|value| ("baggage", value.as_str())).collect();
        let status = if head.is_connect() { 200 } else { 405 };
        self.connection.send_response(stream, status, &labels, status != 200).unwrap();
        self.apps.insert(stream, App { finished: status != 200, ..App::default() });
        if self.drain_after == Some(self.apps.len()) {
            self.connection.drain();
        }
    }

    fn data(&mut self, stream: StreamId, bytes: &[u8]) {
        let app = self.apps.get_mut(&stream).unwrap();
        app.received.extend_from_slice(bytes);
        if let Some((_, code)) = self.reset_after.filter(|(count, _)| app.received.len() >= *count) {
            self.connection.reset(stream, code);
            app.reset = Some(code);
            return;
        }
        if self.connection.role() == Role::Server {
            app.to_send.extend_from_slice(bytes);
        } else {
            self.connection.grant(stream, u32::try_from(bytes.len()).unwrap());
        }
    }

    /// Puts what can be sent into the output: control frames first, then one frame of each stream in turn.
    fn send(&mut self) {
        let mut idle = false;
        while !idle && self.out.len() < UNSENT {
            idle = true;
            self.control();
            let server = self.connection.role() == Role::Server;
            for (stream, app) in &mut self.apps {
                if app.reset.is_some() || app.finished || !self.ready {
                    continue;
                }
                let part = self.connection.reserve_data(*stream, app.to_send.len());
                let last = app.finish && part == app.to_send.len();
                let answered = server || app.status.is_some() || !app.to_send.is_empty();
                if part == 0 && !(last && answered) {
                    continue;
                }
                let header = self.connection.data_header(*stream, part, last).unwrap();
                self.out.extend_from_slice(&header);
                self.out.extend(app.to_send.drain(..part));
                app.finished = last;
                idle = false;
                if server {
                    // An echo has taken what it received once it was sent.
                    self.connection.grant(*stream, u32::try_from(part).unwrap());
                }
            }
        }
        self.control();
    }

    fn control(&mut self) {
        self.out.extend_from_slice(self.connection.output());
        self.connection.consumed(self.connection.output().len());
    }
}
