//! One turn of rustls' unbuffered interface, and the part of the input that it is shown.

use std::ops::RangeInclusive;

use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};

use super::HandshakeError;
use crate::{HEADER_LEN, MAX_PAYLOAD};

/// The longest record of any kind: those of TLS 1.2 may be longer than those of TLS 1.3, but none occur before rustls
/// knows the version.
const MAX_LEN: usize = MAX_PAYLOAD + 256;

/// `change_cipher_spec` to `application_data`.
const RECORD_TYPES: RangeInclusive<u8> = 20..=23;

/// What a turn led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Something was written or acknowledged; there may be more.
    Again,
    /// A record is missing.
    Blocked,
    /// Data could be sent.
    Ready,
    /// The peer closed.
    Closed,
    /// The peer sent data where there must be none.
    Data,
}

/// The front of the input that rustls may see: whole records, added one at a time. So the record that completes the
/// handshake is the last that rustls reads, and what follows it is still encrypted.
#[derive(Debug, Default)]
pub(super) struct Window {
    len: usize,
    malformed: bool,
}

// === impl Window ===

impl Window {
    pub(super) fn of<'i>(&self, input: &'i mut [u8]) -> &'i mut [u8] {
        let len = self.len.min(input.len());
        &mut input[..len]
    }

    pub(super) fn discard(&mut self, input: &mut Vec<u8>, discard: usize) {
        let discard = discard.min(self.len);
        input.drain(..discard);
        self.len -= discard;
    }

    /// Adds the next record, if it is complete. Of one that can be none, the header is added, so that rustls says what is
    /// wrong with it and makes the alert.
    pub(super) fn extend(&mut self, input: &[u8]) -> Result<bool, HandshakeError> {
        if self.malformed {
            return Err(HandshakeError::MalformedRecord);
        }
        let Some(&[kind, _, _, high, low]) =
            input.get(self.len..).and_then(|rest| rest.first_chunk::<HEADER_LEN>())
        else {
            return Ok(false);
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_LEN || !RECORD_TYPES.contains(&kind) {
            self.malformed = true;
            self.len += HEADER_LEN;
            return Ok(true);
        }
        let end = self.len + HEADER_LEN + len;
        if input.len() < end {
            return Ok(false);
        }
        self.len = end;
        Ok(true)
    }
}

/// Does what rustls asks for. Returns how much of the window is to be discarded in any case.
pub(super) fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    output: &mut Vec<u8>,
) -> (usize, Result<Event, HandshakeError>) {
    let event = match status.state {
        Err(error) => Err(HandshakeError::Tls(error)),
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let encode = |buffer: &mut [u8]| data.encode(buffer);
            append(output, encode).map(|()| Event::Again)
        }
        // The caller sends the output before it brings new input, or at the end.
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Event::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Event::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Event::Ready),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Event::Closed),
        Ok(_) => Ok(Event::Data),
    };
    (status.discard, event)
}

/// Appends what `encode` writes. It is asked for the size with an empty buffer, and then writes for certain.
fn append(
    output: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), HandshakeError> {
    let start = output.len();
    let required = match encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        Ok(_) => return Ok(()),
        Err(EncodeError::AlreadyEncoded) => return Err(HandshakeError::NoProgress),
    };
    output.resize(start + required, 0);
    match encode(&mut output[start..]) {
        Ok(written) => {
            output.truncate(start + written);
            Ok(())
        }
        Err(_) => {
            output.truncate(start);
            Err(HandshakeError::NoProgress)
        }
    }
}
