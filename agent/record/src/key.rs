//! The key of one direction at one time: the AEAD, its nonces, and the sequence number that makes them.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{Error, HEADER_LEN, OVERHEAD, Result, TAG_LEN, TrafficSecret};

/// A key with its initialization vector and the number of records that it has protected, which is the sequence number
/// of the next.
pub(crate) struct RecordKey {
    aead: LessSafeKey,
    iv: Zeroizing<[u8; NONCE_LEN]>,
    sequence: u64,
}

// === impl RecordKey ===

impl RecordKey {
    pub(crate) fn new(secret: &TrafficSecret, sequence: u64) -> Result<Self> {
        let material = secret.key_material()?;
        let unbound = UnboundKey::new(secret.suite().aead(), material.key()).map_err(|_| Error::Crypto)?;
        Ok(Self { aead: LessSafeKey::new(unbound), iv: material.iv, sequence })
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Encrypts what lies between the header, which must be filled in, and the tag, and writes the tag. `record` is at
    /// least [`OVERHEAD`] long.
    pub(crate) fn seal(&mut self, record: &mut [u8]) -> Result<()> {
        let (header, plaintext, tag) = split(record)?;
        let (nonce, next) = self.nonce()?;
        let sealed = self
            .aead
            .seal_in_place_separate_tag(nonce, Aad::from(*header), plaintext)
            .map_err(|_| Error::Crypto)?;
        tag.copy_from_slice(sealed.as_ref());
        self.sequence = next;
        Ok(())
    }

    /// Decrypts and checks a record, and returns its inner plaintext: content, content type and padding.
    pub(crate) fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<&'r mut [u8]> {
        let (header, ciphertext, tag) = split(record)?;
        let (nonce, next) = self.nonce()?;
        let plaintext = self
            .aead
            .open_in_place_separate_tag(nonce, Aad::from(*header), tag, ciphertext)
            .map_err(|_| Error::BadRecordMac)?;
        self.sequence = next;
        Ok(plaintext)
    }

    /// The nonce of the next record (RFC 8446, section 5.3), and the sequence number after it.
    fn nonce(&self) -> Result<(Nonce, u64)> {
        let next = self.sequence.checked_add(1).ok_or(Error::SequenceExhausted)?;
        let mut nonce = *self.iv;
        for (byte, sequence) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        Ok((Nonce::assume_unique_for_key(nonce), next))
    }
}

/// Header, protected part and tag of a record.
fn split(record: &mut [u8]) -> Result<(&[u8; HEADER_LEN], &mut [u8], &mut [u8])> {
    if record.len() < OVERHEAD {
        return Err(Error::BufferSize);
    }
    let (header, rest) = record.split_first_chunk_mut().ok_or(Error::BufferSize)?;
    let (protected, tag) = rest.split_at_mut(rest.len() - TAG_LEN);
    Ok((header, protected, tag))
}
