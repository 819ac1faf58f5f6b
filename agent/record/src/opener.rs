//! The receiving direction: opens records in place, follows the peer's key updates, and bounds what a peer can send
//! without sending data.

use std::fmt;
use std::ops::Range;

use crate::key::RecordKey;
use crate::messages::PartialMessage;
use crate::{
    Alert, Error, HEADER_LEN, LEGACY_VERSION, MAX_PAYLOAD, MAX_RECORD, OVERHEAD, Result, TrafficSecret,
    content,
};

/// How many records in a row may carry no application data. Other implementations allow 32 empty records or key updates.
const MAX_IDLE_RECORDS: u8 = 32;

/// Which end of the connection this is. Only a server may send tickets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// This end is the client.
    Client,
    /// This end is the server.
    Server,
}

/// What a record turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Application data: where in the record it lies. It may be empty.
    Data(Range<usize>),
    /// The peer has changed its key, and the opener has followed. When `requested`, this end has to send a KeyUpdate that
    /// requests nothing before its next data; one answers any number of requests.
    KeyUpdate {
        /// Whether an answer is required.
        requested: bool,
    },
    /// The server sent a session ticket, which is not kept.
    Ticket,
    /// Nothing that the caller needs to know: part of a handshake message, or `user_canceled`.
    Nothing,
    /// The peer will send nothing more. This end may go on sending.
    CloseNotify,
    /// The peer gave up the connection.
    Alert(Alert),
}

/// Opens the records of one direction, in the order of their arrival.
pub struct Opener {
    secret: TrafficSecret,
    key: RecordKey,
    role: Role,
    partial: PartialMessage,
    idle_records: u8,
    closed: bool,
}

/// An [`Opener`] taken apart.
#[derive(Debug)]
pub struct OpenerParts {
    /// The current traffic secret of the peer.
    pub secret: TrafficSecret,
    /// The sequence number of the next record, which is how many records this secret's key has opened.
    pub sequence: u64,
    /// Which end this is.
    pub role: Role,
    /// The handshake message of which a part has arrived.
    pub partial: PartialMessage,
    /// How many records in a row carried no application data.
    pub idle_records: u8,
    /// Whether the peer closed, or an error ended the direction.
    pub closed: bool,
}

// === impl Opener ===

impl Opener {
    /// Puts an opener together: a new one, or one that was taken apart.
    ///
    /// # Errors
    ///
    /// [`Error::MessageLength`] when the partial message is none that an opener can have left; [`Error::Crypto`], which
    /// has no known cause.
    pub fn from_parts(parts: OpenerParts) -> Result<Self> {
        let OpenerParts { secret, sequence, role, partial, idle_records, closed } = parts;
        if !partial.is_valid(role == Role::Client) {
            return Err(Error::MessageLength);
        }
        Ok(Self { key: RecordKey::new(&secret, sequence)?, secret, role, partial, idle_records, closed })
    }

    /// Takes the opener apart, between two records.
    #[must_use]
    pub fn into_parts(self) -> OpenerParts {
        let Self { secret, key, role, partial, idle_records, closed } = self;
        OpenerParts { secret, sequence: key.sequence(), role, partial, idle_records, closed }
    }

    /// The length of the record at the front of `buffer`, header included, at most [`MAX_RECORD`]; the buffer may hold
    /// less of it. `None` while the header is incomplete.
    ///
    /// # Errors
    ///
    /// A header that no record has after the handshake: [`Error::UnexpectedRecord`] (`change_cipher_spec` too, which is
    /// ignored during a handshake only), [`Error::RecordVersion`], [`Error::RecordTooLong`], [`Error::RecordTooShort`].
    pub fn record_len(buffer: &[u8]) -> Result<Option<usize>> {
        let Some(&[kind, major, minor, high, low]) = buffer.first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        if kind != content::APPLICATION_DATA {
            return Err(Error::UnexpectedRecord(kind));
        }
        let version = u16::from_be_bytes([major, minor]);
        if version != LEGACY_VERSION {
            return Err(Error::RecordVersion(version));
        }
        let len = HEADER_LEN + usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_RECORD {
            return Err(Error::RecordTooLong);
        }
        if len < OVERHEAD {
            return Err(Error::RecordTooShort);
        }
        Ok(Some(len))
    }

    /// Opens one record in place. `record` is exactly one record, as [`Opener::record_len`] measured it.
    ///
    /// # Errors
    ///
    /// Whatever the peer did wrong, after which the opener is closed; [`Error::BufferSize`] when `record` is not exactly
    /// one record; [`Error::Closed`] when the peer, or an error, has closed the direction before.
    pub fn open(&mut self, record: &mut [u8]) -> Result<Opened> {
        if self.closed {
            return Err(Error::Closed);
        }
        let opened = self.open_record(record);
        match opened {
            Ok(Opened::CloseNotify | Opened::Alert(_)) => self.closed = true,
            Ok(_) | Err(Error::BufferSize) => {}
            Err(_) => self.closed = true,
        }
        opened
    }

    /// Whether the peer has sealed so many records with one key that it should update it: a KeyUpdate with a request
    /// makes it.
    #[must_use]
    pub fn wants_key_update(&self) -> bool {
        self.key.sequence() >= self.secret.suite().update_after()
    }

    fn open_record(&mut self, record: &mut [u8]) -> Result<Opened> {
        if Self::record_len(record)? != Some(record.len()) {
            return Err(Error::BufferSize);
        }
        let plaintext = self.key.open(record)?;
        // Padding counts: an inner plaintext has one byte more than the largest payload.
        if plaintext.len() > MAX_PAYLOAD + 1 {
            return Err(Error::RecordTooLong);
        }
        let end = plaintext.iter().rposition(|byte| *byte != 0).ok_or(Error::NoContent)?;
        let (content, kind) = (&plaintext[..end], plaintext[end]);
        if kind == content::APPLICATION_DATA && self.partial.is_empty() && end > 0 {
            self.idle_records = 0;
            return Ok(Opened::Data(HEADER_LEN..HEADER_LEN + end));
        }
        match kind {
            content::HANDSHAKE => {
                self.count_idle()?;
                let messages = self.partial.read(content, self.role == Role::Client)?;
                if let Some(requested) = messages.key_update {
                    self.step_key()?;
                    return Ok(Opened::KeyUpdate { requested });
                }
                Ok(if messages.ticket { Opened::Ticket } else { Opened::Nothing })
            }
            content::ALERT => self.read_alert(content),
            content::APPLICATION_DATA if !self.partial.is_empty() => Err(Error::Interrupted),
            content::APPLICATION_DATA => {
                self.count_idle()?;
                Ok(Opened::Data(HEADER_LEN..HEADER_LEN))
            }
            other => Err(Error::UnexpectedRecord(other)),
        }
    }

    /// An alert's level says nothing in TLS 1.3: all but two end the connection. Those two may not interrupt a handshake
    /// message; an error is worth knowing anywhere.
    fn read_alert(&mut self, content: &[u8]) -> Result<Opened> {
        let alert = match content {
            [] => return Err(Error::NoContent),
            [_level, code] => Alert(*code),
            _ => return Err(Error::MessageLength),
        };
        match alert {
            Alert::CLOSE_NOTIFY | Alert::USER_CANCELED if !self.partial.is_empty() => Err(Error::Interrupted),
            Alert::CLOSE_NOTIFY => Ok(Opened::CloseNotify),
            Alert::USER_CANCELED => {
                self.count_idle()?;
                Ok(Opened::Nothing)
            }
            other => Ok(Opened::Alert(other)),
        }
    }

    /// Counts a record that made the reader work and brought no data.
    fn count_idle(&mut self) -> Result<()> {
        self.idle_records = self.idle_records.saturating_add(1);
        if self.idle_records > MAX_IDLE_RECORDS { Err(Error::NoProgress) } else { Ok(()) }
    }

    fn step_key(&mut self) -> Result<()> {
        self.secret = self.secret.next()?;
        self.key = RecordKey::new(&self.secret, 0)?;
        Ok(())
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("suite", &self.secret.suite())
            .field("sequence", &self.key.sequence())
            .field("role", &self.role)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
