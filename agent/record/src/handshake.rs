//! The handshake in front of the record layer: rustls' unbuffered connection, driven without I/O, and the hand-over of
//! its traffic secrets.
//!
//! Owns the order of steps, and that rustls never sees a byte behind the record that completes the handshake. What a
//! peer's certificate means is the business of the configuration's verifier and of the caller, who asks
//! [`Handshaker::state`] between [`Progress::Done`] and [`Handshaker::into_session`].

mod capture;
mod config;
mod drive;
mod error;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, CommonState, ProtocolVersion, ServerConfig};

use self::capture::CapturedSecrets;
use self::drive::{Event, Window};
pub use self::error::HandshakeError;
pub use self::session::Session;
use crate::Role;

/// How often rustls may ask for another turn before it has consumed or produced anything. Each turn encodes one chunk of
/// a flight or consumes one record, so that an honest handshake needs a few dozen.
const MAX_TURNS: usize = 1024;

/// How far a handshake is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// The peer has to send more. What was written to the output must reach the peer first.
    NeedInput,
    /// The handshake is finished, and the peer proved what the configuration demands. The output still has to be sent.
    Done,
}

/// A TLS 1.3 handshake of either role.
pub struct Handshaker {
    connection: Connection,
    secrets: Arc<CapturedSecrets>,
    window: Window,
    progress: Progress,
    failed: bool,
}

enum Connection {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

// === impl Handshaker ===

impl Handshaker {
    /// The client's side. The configuration is used as it is, except that secrets may be extracted and sessions are not
    /// resumed.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Tls`] when rustls cannot use the configuration.
    pub fn client(config: &ClientConfig, name: ServerName<'static>) -> Result<Self, HandshakeError> {
        let (config, secrets) = config::client(config);
        let connection = UnbufferedClientConnection::new(Arc::new(config), name)?;
        Ok(Self::new(Connection::Client(connection), secrets))
    }

    /// The server's side. The configuration is used as it is, except that secrets may be extracted, and that there are no
    /// tickets, no early data, and no data before the client has proved itself.
    ///
    /// # Errors
    ///
    /// [`HandshakeError::Tls`] when rustls cannot use the configuration.
    pub fn server(config: &ServerConfig) -> Result<Self, HandshakeError> {
        let (config, secrets) = config::server(config);
        let connection = UnbufferedServerConnection::new(Arc::new(config))?;
        Ok(Self::new(Connection::Server(connection), secrets))
    }

    fn new(connection: Connection, secrets: Arc<CapturedSecrets>) -> Self {
        Self { connection, secrets, window: Window::default(), progress: Progress::NeedInput, failed: false }
    }

    /// Consumes what it can of `input` and appends to `output` what must be sent. Bytes behind the handshake stay at the
    /// front of `input`: they are for the [`Opener`](crate::Opener). A caller that is told [`Progress::NeedInput`] appends
    /// to the same `input`, which then holds at most one unfinished handshake message and one unfinished record.
    ///
    /// # Errors
    ///
    /// The handshake failed: `output` may hold an alert for the peer, and there is no other step.
    pub fn step(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        if self.failed {
            return Err(HandshakeError::Failed);
        }
        if self.progress == Progress::Done {
            return Ok(Progress::Done);
        }
        match self.run(input, output) {
            Ok(progress) => {
                self.progress = progress;
                Ok(progress)
            }
            Err(error) => {
                self.failed = true;
                self.flush_alert(input, output);
                Err(error)
            }
        }
    }

    /// What rustls knows of the connection: the peer's certificates, ALPN, the key exchange.
    #[must_use]
    pub fn state(&self) -> &CommonState {
        match &self.connection {
            Connection::Client(connection) => connection,
            Connection::Server(connection) => connection,
        }
    }

    /// Which end this is.
    #[must_use]
    pub fn role(&self) -> Role {
        match &self.connection {
            Connection::Client(_) => Role::Client,
            Connection::Server(_) => Role::Server,
        }
    }

    /// Ends rustls' part, after [`Progress::Done`].
    ///
    /// # Errors
    ///
    /// [`HandshakeError::NotDone`] before, and [`HandshakeError::Secrets`] when the secrets are not those that rustls
    /// itself uses.
    pub fn into_session(self) -> Result<Session, HandshakeError> {
        if self.progress != Progress::Done || self.failed {
            return Err(HandshakeError::NotDone);
        }
        Session::new(self.connection, &self.secrets)
    }

    fn run(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        for _ in 0..MAX_TURNS {
            let event = self.turn(input, output)?;
            if self.state().protocol_version() == Some(ProtocolVersion::TLSv1_2) {
                return Err(HandshakeError::NotTls13);
            }
            match event {
                Event::Again => {}
                Event::Ready if !self.state().is_handshaking() => return Ok(Progress::Done),
                // A server that may send data early waits for the client's part all the same.
                Event::Ready | Event::Blocked => {
                    if !self.window.extend(input)? {
                        return Ok(Progress::NeedInput);
                    }
                }
                Event::Closed => return Err(HandshakeError::PeerClosed),
                Event::Data => return Err(HandshakeError::EarlyData),
            }
        }
        Err(HandshakeError::NoProgress)
    }

    /// One turn of rustls over the window.
    fn turn(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<Event, HandshakeError> {
        let window = self.window.of(input);
        let (discard, event) = match &mut self.connection {
            Connection::Client(connection) => drive::handle(connection.process_tls_records(window), output),
            Connection::Server(connection) => drive::handle(connection.process_tls_records(window), output),
        };
        self.window.discard(input, discard);
        event
    }

    /// Lets rustls encode what it has queued with its error: an alert. It must not look at the input again, which would
    /// be the same error a second time; it does not while something is queued.
    fn flush_alert(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) {
        const QUEUED: usize = 32;
        for _ in 0..QUEUED {
            if !self.state().wants_write() || self.turn(input, output).is_err() {
                return;
            }
        }
    }
}
