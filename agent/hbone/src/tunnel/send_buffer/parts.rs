//! A send buffer taken apart: what is not written, sealed, and the sealer behind it.

use std::io;

use isthmus_record::{Sealer, SealerParts};

use super::{Chunk, SendBuffer};
use crate::tunnel::chunk::{self, Size};

/// A send buffer as plain values.
pub(in crate::tunnel) struct SendBufferParts {
    pub(in crate::tunnel) sealer: Option<SealerParts>,
    pub(in crate::tunnel) unwritten: Vec<u8>,
    pub(in crate::tunnel) owes_key_update: bool,
}

impl SendBuffer {
    /// Takes it apart behind the last record, which is sealed. What was written of the first stays written.
    ///
    /// # Errors
    /// When the key's limit is reached, or nothing may follow an alert.
    pub(in crate::tunnel) fn into_parts(mut self) -> io::Result<SendBufferParts> {
        self.seal_open()?;
        let mut bytes = Vec::with_capacity(self.unwritten);
        for chunk in &self.chunks {
            bytes.extend_from_slice(&chunk.bytes[chunk.written..chunk.filled]);
        }
        // By reference, as it gives its chunks back when it is dropped.
        let Self { sealer, chunks: _, open: _, unwritten: _, owes_key_update, closed } = &mut self;
        if *closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let sealer = sealer.take().map(Sealer::into_parts);
        Ok(SendBufferParts { sealer, unwritten: bytes, owes_key_update: *owes_key_update })
    }

    /// Puts it together.
    ///
    /// # Errors
    /// When the sealer's key cannot be made.
    pub(in crate::tunnel) fn from_parts(parts: SendBufferParts) -> isthmus_record::Result<Self> {
        let SendBufferParts { sealer, unwritten, owes_key_update } = parts;
        let mut buffer = Self::new(sealer.map(Sealer::from_parts).transpose()?);
        buffer.owes_key_update = owes_key_update;
        for part in unwritten.chunks(chunk::LARGE) {
            let mut bytes = chunk::take(Size::Large);
            bytes[..part.len()].copy_from_slice(part);
            buffer.chunks.push_back(Chunk { bytes, written: 0, filled: part.len() });
        }
        buffer.unwritten = unwritten.len();
        Ok(buffer)
    }
}
