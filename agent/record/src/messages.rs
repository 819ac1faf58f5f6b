//! Handshake messages after the handshake: KeyUpdate and NewSessionTicket, whole, fragmented over records, or several in
//! one record (RFC 8446, sections 4.6 and 5.1). Keeps no body: a ticket is skipped as it arrives.

use crate::{Error, Result};

/// The type of KeyUpdate.
pub(crate) const KEY_UPDATE: u8 = 24;
/// The type of NewSessionTicket.
pub(crate) const NEW_SESSION_TICKET: u8 = 4;

/// Bytes of a message's header: type and length.
const HEADER: usize = 4;
/// The shortest ticket message: lifetime, age, an empty nonce, a ticket of one byte, no extensions.
const MIN_TICKET: usize = 14;
/// The longest ticket message that is skipped. No implementation is known to send one that is longer.
const MAX_TICKET: usize = 0xffff;

/// A handshake message of which the beginning has arrived. Plain, so that it can be moved with a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PartialMessage {
    /// The header, as far as it has arrived.
    pub header: [u8; HEADER],
    /// How many bytes of the header have arrived.
    pub header_len: u8,
    /// How many bytes of the body are missing, once the header is complete.
    pub missing: u32,
}

/// What the messages of one record say, all together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Messages {
    /// A ticket ended.
    pub(crate) ticket: bool,
    /// The peer changes its key after this record, and requests the same or not.
    pub(crate) key_update: Option<bool>,
}

// === impl PartialMessage ===

impl PartialMessage {
    /// Whether no message has begun.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.header_len == 0
    }

    /// Reads the content of one handshake record. `tickets` says whether the peer may send tickets.
    pub(crate) fn read(&mut self, mut content: &[u8], tickets: bool) -> Result<Messages> {
        let mut messages = Messages::default();
        if content.is_empty() {
            return Err(Error::NoContent);
        }
        while let Some((&first, rest)) = content.split_first() {
            if usize::from(self.header_len) < HEADER {
                self.read_header(first, tickets)?;
                content = rest;
                continue;
            }
            if self.kind() == KEY_UPDATE {
                let requested = match first {
                    0 => false,
                    1 => true,
                    other => return Err(Error::KeyUpdateRequest(other)),
                };
                if !rest.is_empty() {
                    return Err(Error::AfterKeyUpdate);
                }
                messages.key_update = Some(requested);
                *self = Self::default();
                return Ok(messages);
            }
            let skipped = content.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX));
            content = &content[skipped..];
            self.missing -= u32::try_from(skipped).unwrap_or(self.missing);
            if self.missing == 0 {
                messages.ticket = true;
                *self = Self::default();
            }
        }
        Ok(messages)
    }

    fn kind(&self) -> u8 {
        self.header[0]
    }

    /// Takes one byte of the header. A message that is not allowed is refused at its first byte, and one whose length is
    /// wrong at its last.
    fn read_header(&mut self, byte: u8, tickets: bool) -> Result<()> {
        self.header[usize::from(self.header_len)] = byte;
        self.header_len += 1;
        match self.kind() {
            KEY_UPDATE => {}
            NEW_SESSION_TICKET if tickets => {}
            other => return Err(Error::UnexpectedMessage(other)),
        }
        if usize::from(self.header_len) < HEADER {
            return Ok(());
        }
        let [kind, a, b, c] = self.header;
        self.missing = u32::from_be_bytes([0, a, b, c]);
        let len = usize::try_from(self.missing).unwrap_or(usize::MAX);
        let right = if kind == KEY_UPDATE { len == 1 } else { (MIN_TICKET..=MAX_TICKET).contains(&len) };
        if right { Ok(()) } else { Err(Error::MessageLength) }
    }

    /// Whether this is a state that [`PartialMessage::read`] can have left.
    pub(crate) fn is_valid(&self, tickets: bool) -> bool {
        let mut replayed = Self::default();
        let Some(header) = self.header.get(..usize::from(self.header_len)) else { return false };
        if header.iter().any(|byte| replayed.read_header(*byte, tickets).is_err()) {
            return false;
        }
        let within = if header.len() < HEADER {
            self.missing == 0
        } else {
            (1..=replayed.missing).contains(&self.missing)
        };
        within && self.header[header.len()..].iter().all(|byte| *byte == 0)
    }
}
