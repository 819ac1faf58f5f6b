//! The sending direction: seals records in place, and counts what the key has sealed.

use std::fmt;

use crate::key::RecordKey;
use crate::messages::KEY_UPDATE;
use crate::{
    Alert, Error, HEADER_LEN, LEGACY_VERSION, MAX_PAYLOAD, OVERHEAD, Result, TAG_LEN, TrafficSecret, content,
};

/// Bytes of the record of an alert.
pub const ALERT_LEN: usize = OVERHEAD + 2;

/// Bytes of the record of a KeyUpdate.
pub const KEY_UPDATE_LEN: usize = OVERHEAD + 5;

/// Seals the records of one direction. Every record that it has sealed must be sent, in order.
pub struct Sealer {
    secret: TrafficSecret,
    key: RecordKey,
    closed: bool,
}

/// A [`Sealer`] taken apart.
#[derive(Debug)]
pub struct SealerParts {
    /// The current traffic secret.
    pub secret: TrafficSecret,
    /// The sequence number of the next record, which is how many records this secret's key has sealed.
    pub sequence: u64,
    /// Whether `close_notify` or another alert was sealed, so that nothing may follow.
    pub closed: bool,
}

// === impl Sealer ===

impl Sealer {
    /// Puts a sealer together: a new one, or one that was taken apart.
    ///
    /// # Errors
    ///
    /// [`Error::Crypto`], which has no known cause.
    pub fn from_parts(parts: SealerParts) -> Result<Self> {
        let SealerParts { secret, sequence, closed } = parts;
        Ok(Self { key: RecordKey::new(&secret, sequence)?, secret, closed })
    }

    /// Takes the sealer apart, between two records.
    #[must_use]
    pub fn into_parts(self) -> SealerParts {
        let Self { secret, key, closed } = self;
        SealerParts { secret, sequence: key.sequence(), closed }
    }

    /// Seals one record of application data in place. `record` is the whole record, [`OVERHEAD`] longer than the payload,
    /// which the caller has written from [`HEADER_LEN`] on; header, content type and tag are filled in.
    ///
    /// # Errors
    ///
    /// [`Error::BufferSize`] when the payload would be larger than [`MAX_PAYLOAD`] or smaller than nothing;
    /// [`Error::KeyExhausted`] when the key must be updated first; [`Error::Closed`] after an alert.
    pub fn seal(&mut self, record: &mut [u8]) -> Result<()> {
        if self.key.sequence() >= self.secret.suite().record_limit() {
            return Err(Error::KeyExhausted);
        }
        self.seal_as(content::APPLICATION_DATA, record)
    }

    /// Whether the key has sealed so many records that it should be updated soon.
    #[must_use]
    pub fn needs_key_update(&self) -> bool {
        self.key.sequence() >= self.secret.suite().update_after()
    }

    /// Seals a KeyUpdate and changes to the next key. With `request`, the peer has to update its own key too; an answer to
    /// a peer's request must not request another.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after an alert.
    pub fn key_update(&mut self, request: bool) -> Result<[u8; KEY_UPDATE_LEN]> {
        let secret = self.secret.next()?;
        let key = RecordKey::new(&secret, 0)?;
        let record = self.control(content::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, u8::from(request)])?;
        self.secret = secret;
        self.key = key;
        Ok(record)
    }

    /// Seals a `close_notify`, after which nothing can be sealed.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after another alert.
    pub fn close_notify(&mut self) -> Result<[u8; ALERT_LEN]> {
        self.alert(Alert::CLOSE_NOTIFY)
    }

    /// Seals an alert, after which nothing can be sealed.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] after another alert.
    pub fn alert(&mut self, alert: Alert) -> Result<[u8; ALERT_LEN]> {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let warning = alert == Alert::CLOSE_NOTIFY || alert == Alert::USER_CANCELED;
        let record = self.control(content::ALERT, &[if warning { WARNING } else { FATAL }, alert.0])?;
        self.closed = true;
        Ok(record)
    }

    /// A record of `content`. Alerts and key updates pass the key's limit, which is far enough from the real one: each
    /// is the last of its key.
    fn control<const LEN: usize>(&mut self, kind: u8, content: &[u8]) -> Result<[u8; LEN]> {
        let mut record = [0; LEN];
        let end = LEN - 1 - TAG_LEN;
        record.get_mut(HEADER_LEN..end).ok_or(Error::BufferSize)?.copy_from_slice(content);
        self.seal_as(kind, &mut record)?;
        Ok(record)
    }

    fn seal_as(&mut self, kind: u8, record: &mut [u8]) -> Result<()> {
        if self.closed {
            return Err(Error::Closed);
        }
        let len = record.len();
        if !(OVERHEAD..=MAX_PAYLOAD + OVERHEAD).contains(&len) {
            return Err(Error::BufferSize);
        }
        let [major, minor] = LEGACY_VERSION.to_be_bytes();
        let [high, low] = u16::try_from(len - HEADER_LEN).map_err(|_| Error::BufferSize)?.to_be_bytes();
        record[..HEADER_LEN].copy_from_slice(&[content::APPLICATION_DATA, major, minor, high, low]);
        record[len - TAG_LEN - 1] = kind;
        // After a failure the payload may be half encrypted: nothing may be sealed with the same nonce again.
        self.key.seal(record).inspect_err(|_| self.closed = true)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("suite", &self.secret.suite())
            .field("sequence", &self.key.sequence())
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
